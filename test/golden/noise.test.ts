import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { fromHex, toHex } from "../../shared/bytes.ts";
import { NoiseHandshake } from "../../shared/session/noise.ts";
import { aeadOpen, aeadSeal, counterNonce, X25519Key } from "../../shared/session/primitives.ts";

interface Vector {
  readonly protocol_name: string;
  readonly init_prologue: string;
  readonly init_static: string;
  readonly init_ephemeral: string;
  readonly init_remote_static: string;
  readonly resp_static: string;
  readonly resp_ephemeral: string;
  readonly handshake_hash: string;
  readonly messages: readonly { readonly payload: string; readonly ciphertext: string }[];
}

const file = new URL("./noise-ik-25519-aesgcm-sha256.json", import.meta.url);
const { vectors } = JSON.parse(readFileSync(file, "utf8")) as { vectors: Vector[] };

describe.each(vectors)("published vector $protocol_name", (vector) => {
  const prologue = fromHex(vector.init_prologue);
  const make = () => ({
    initiator: new NoiseHandshake({
      pattern: "IK",
      initiator: true,
      prologue,
      staticKey: new X25519Key(fromHex(vector.init_static)),
      ephemeral: new X25519Key(fromHex(vector.init_ephemeral)),
      remoteStatic: fromHex(vector.init_remote_static),
    }),
    responder: new NoiseHandshake({
      pattern: "IK",
      initiator: false,
      prologue,
      staticKey: new X25519Key(fromHex(vector.resp_static)),
      ephemeral: new X25519Key(fromHex(vector.resp_ephemeral)),
    }),
  });

  test("both handshake messages, the hash and all transport messages match byte for byte", () => {
    const { initiator, responder } = make();
    const [first, second, ...transport] = vector.messages;
    const one = initiator.writeMessage(fromHex(first?.payload ?? ""));
    expect(toHex(one ?? new Uint8Array())).toBe(first?.ciphertext);
    expect(toHex(responder.readMessage(one ?? new Uint8Array()) ?? new Uint8Array())).toBe(first?.payload);
    const two = responder.writeMessage(fromHex(second?.payload ?? ""));
    expect(toHex(two ?? new Uint8Array())).toBe(second?.ciphertext);
    expect(toHex(initiator.readMessage(two ?? new Uint8Array()) ?? new Uint8Array())).toBe(second?.payload);

    const keys = [initiator.split(), responder.split()] as const;
    expect(toHex(keys[0].handshakeHash)).toBe(vector.handshake_hash);
    expect(toHex(keys[1].handshakeHash)).toBe(vector.handshake_hash);
    expect(responder.remoteStatic).toEqual(new X25519Key(fromHex(vector.init_static)).publicKey);

    expect(transport.length).toBeGreaterThan(3);
    transport.forEach(({ payload, ciphertext }, index) => {
      const [from, to] = index % 2 === 0 ? [keys[0], keys[1]] : [keys[1], keys[0]];
      const nonce = counterNonce(index >> 1);
      const sealed = aeadSeal(from.send, nonce, new Uint8Array(), fromHex(payload));
      expect(toHex(sealed)).toBe(ciphertext);
      expect(toHex(aeadOpen(to.receive, nonce, new Uint8Array(), sealed) ?? new Uint8Array())).toBe(payload);
    });
  });

  test("a flipped bit anywhere in the first message is refused", () => {
    const message = make().initiator.writeMessage(new Uint8Array(8)) ?? new Uint8Array();
    for (let at = 0; at < message.length; at++) {
      const forged = Uint8Array.from(message);
      forged[at] = (forged[at] ?? 0) ^ 0x01;
      // The top bit of an X25519 point is ignored by RFC 7748, but it is part of the transcript.
      expect(make().responder.readMessage(forged), `byte ${at}`).toBeUndefined();
    }
  });
});
