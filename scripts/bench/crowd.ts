/**
 * Members of a mesh that do nothing but be there: each is a signalling connection with an identity of its own, that answers the
 * coordinator's clock and leaves all else unanswered. For bench_idle.ts.
 *
 * Usage: bun scripts/bench/crowd.ts URL JOIN_KEY COUNT. Prints "ready" when all have joined, and ends when its input does.
 */
import { randomBytes } from "node:crypto";
import { SIGNAL_PATH } from "../../agent/driver/signal_client.ts";
import { utf8Text } from "../../shared/bytes.ts";
import { signSessionKey } from "../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../shared/session/primitives.ts";
import { AgentChannel } from "../../shared/signal/channel.ts";
import { decodeCoordinatorMessage, encodeMessage, PROTOCOL_VERSION } from "../../shared/signal/messages.ts";

/** The coordinator admits sixteen unproven connections of one source at once. */
const AT_ONCE = 8;

const [url = "", key = "", count = ""] = process.argv.slice(2);
const newKey = (): Uint8Array => new Uint8Array(randomBytes(32));

/** Resolves when the member has joined; rejects when its connection ends before. */
async function join(name: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const identity = new Ed25519Key(newKey());
  const sessionKey = new X25519Key(newKey());
  const channel = new AgentChannel({
    staticKey: sessionKey,
    ephemeral: new X25519Key(newKey()),
    hello: {
      version: PROTOCOL_VERSION,
      features: 0,
      identity: identity.publicKey,
      signature: signSessionKey(identity, sessionKey.publicKey),
      name,
      nameIsExplicit: true,
      key,
      software: "crowd",
      instance: 1,
    },
    accept: () => true,
  });
  const socket = new WebSocket(url.replace(/^http/, "ws") + SIGNAL_PATH);
  socket.binaryType = "arraybuffer";
  const send = (bytes: Uint8Array): void => socket.send(Uint8Array.from(bytes));
  socket.onopen = () => send(channel.start());
  socket.onclose = ({ reason }) => reject(new Error(`"${name}" lost its connection: ${reason}`));
  socket.onmessage = ({ data }) => {
    const receivedAt = performance.now();
    const outcome = channel.handle(new Uint8Array(data as ArrayBuffer));
    if (outcome.type === "reply") send(outcome.bytes);
    if (outcome.type !== "message") return;
    // Lists of peers are long, and nobody here reads them.
    if (utf8Text(outcome.plaintext.subarray(0, 16))?.startsWith('{"type":"peers"') === true) return;
    const message = decodeCoordinatorMessage(outcome.plaintext);
    if (message?.type === "refused") reject(new Error(message.message));
    if (message?.type === "welcome") resolve();
    if (message?.type !== "clock_request") return;
    const reply = { type: "clock_reply", id: message.id, receivedAt, sentAt: performance.now() } as const;
    send(channel.seal(encodeMessage(reply)));
  };
  await promise;
}

let next = 1;
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    while (next <= Number(count)) await join(`member-${next++}`);
  }),
);
console.log("ready");
process.stdin.on("end", () => process.exit(0)).resume();
