import { expect, test } from "vitest";
import { utf8 } from "../../../shared/bytes.ts";
import { keyFingerprint, peerIdOf, signSessionKey, verifyIdentityChain } from "../../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../../shared/session/primitives.ts";
import { AgentChannel, CoordinatorChannel } from "../../../shared/signal/channel.ts";
import {
  decodeAgentMessage,
  decodeCoordinatorMessage,
  type CoordinatorMessage,
  encodeMessage,
  type Hello,
} from "../../../shared/signal/messages.ts";

const key = (fill: number) => new X25519Key(new Uint8Array(32).fill(fill));

test("agent and coordinator open a channel, prove their keys, and talk both ways", () => {
  const { agent, coordinator, identity } = pair();
  const reply = coordinator.handle(agent.start());
  if (reply.type !== "reply") throw new Error(reply.type);
  const last = agent.handle(reply.bytes);
  if (last.type !== "reply") throw new Error(last.type);
  const hello = coordinator.handle(last.bytes);
  if (hello.type !== "hello") throw new Error(hello.type);
  const chain = { identity: hello.hello.identity, sessionKey: hello.sessionKey, signature: hello.hello.signature };
  expect(verifyIdentityChain(chain)).toBe(peerIdOf(identity.publicKey));

  const message = { type: "punch_request", peer: peerIdOf(identity.publicKey), round: 3 } as const;
  const opened = coordinator.handle(agent.seal(encodeMessage(message)));
  expect(opened.type === "message" && decodeAgentMessage(opened.plaintext)).toEqual(message);
  const answer = { type: "observed", addresses: [{ ip: "2001:db8::1", port: 7 }] } satisfies CoordinatorMessage;
  const back = agent.handle(coordinator.seal(encodeMessage(answer)));
  expect(back.type === "message" && decodeCoordinatorMessage(back.plaintext)).toEqual(answer);
});

test("a coordinator with another key than the pinned one never gets the hello", () => {
  const { agent } = pair(() => false);
  const imposter = new CoordinatorChannel({ staticKey: key(66), ephemeral: key(67) });
  const reply = imposter.handle(agent.start());
  if (reply.type !== "reply") throw new Error(reply.type);
  expect(agent.handle(reply.bytes)).toMatchObject({
    type: "failed",
    reason: "wrong fingerprint",
    fingerprint: keyFingerprint(key(66).publicKey),
  });
});

test("replayed, reordered and forged messages close the channel", () => {
  const { agent, coordinator } = pair();
  const reply = coordinator.handle(agent.start());
  if (reply.type !== "reply") throw new Error(reply.type);
  const last = agent.handle(reply.bytes);
  if (last.type !== "reply") throw new Error(last.type);
  coordinator.handle(last.bytes);
  const first = agent.seal(utf8("{}"));
  expect(coordinator.handle(first).type).toBe("message");
  expect(coordinator.handle(first)).toMatchObject({ type: "failed", reason: "not authentic" });
});

test("decoders refuse malformed messages without throwing", () => {
  for (const text of ["", "{", "[]", '{"type":"nope"}', '{"type":"to_peer","to":"x","body":"!"}']) {
    expect(decodeAgentMessage(utf8(text)), text).toBeUndefined();
    expect(decodeCoordinatorMessage(utf8(text)), text).toBeUndefined();
  }
});

function pair(accept: (fingerprint: string) => boolean = (f) => f === keyFingerprint(key(2).publicKey)) {
  const identity = new Ed25519Key(new Uint8Array(32).fill(9));
  const staticKey = key(1);
  const hello: Hello = {
    version: 1,
    features: 0,
    identity: identity.publicKey,
    signature: signSessionKey(identity, staticKey.publicKey),
    name: "laptop",
    nameIsExplicit: false,
    key: "tmk_a_b_c",
    software: "test",
    instance: 1,
  };
  return {
    identity,
    agent: new AgentChannel({ staticKey, ephemeral: key(3), hello, accept }),
    coordinator: new CoordinatorChannel({ staticKey: key(2), ephemeral: key(4) }),
  };
}
