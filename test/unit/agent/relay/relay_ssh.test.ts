/** The agent's SSH tunnel against the coordinator's own server: whom it trusts, when it gives up, and that new keys lose nothing. */
import { Client } from "ssh2";
import { afterEach, describe, expect, test, vi } from "vitest";
import { publicBlobOf } from "../../../../coordinator/ssh/host_key.ts";
import { Ed25519Key } from "../../../../shared/session/primitives.ts";
import { RelayWorld } from "../../coordinator/relay/relay_world.ts";
import { type AgentLeg, agentLeg, type AgentLegOptions } from "./agent_leg.ts";

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
  vi.restoreAllMocks();
});

type WorldOptions = Parameters<typeof RelayWorld.start>[0];

async function start(world: WorldOptions = {}, options: AgentLegOptions = {}): Promise<[RelayWorld, AgentLeg]> {
  const on = await RelayWorld.start(world);
  const leg = await agentLeg(on, "ssh", on.identity(1), options);
  closers.push(leg.close, () => on.close());
  return [on, leg];
}

test("a server with another host key than the one that signalling told is refused, in words, before anybody has logged in", async () => {
  const stranger = new Ed25519Key(new Uint8Array(32).fill(99));
  const [on, leg] = await start({}, { hostKey: publicBlobOf(stranger.publicKey), waitsForIt: false });
  await on.until("the end", () => leg.states.length > 0);
  expect(leg.states.map(({ isUp }) => isUp)).toEqual([false]);
  expect(leg.problems).toEqual([
    `The SSH server at 127.0.0.1:${leg.line.port} is not the coordinator's: its host key is another one. SSH is not used there; look for a proxy or a redirection of that port on the way, or for an address in --public-host that leads elsewhere`,
  ]);
  expect(on.relay.legCount).toBe(0);
});

test("what costs the coordinator least is chosen: AES-CTR, with a MAC of the encrypted packet", async () => {
  const events = vi.spyOn(Client.prototype, "emit");
  await start();
  const [, negotiated] = events.mock.calls.find(([name]) => name === "handshake") ?? [];
  const used = { cipher: "aes256-ctr", mac: "hmac-sha2-256-etm@openssh.com" };
  expect(negotiated).toMatchObject({ cs: used, sc: used });
});

test("the right host key is taken without a word", async () => {
  const [on, leg] = await start();
  expect(leg.problems).toEqual([]);
  expect(on.relay.legCount).toBe(1);
});

describe("a connection that has died without a word, and nobody challenges", () => {
  test("is given up by the agent at the third keepalive", async () => {
    const [on, leg] = await start({}, { keepaliveMs: 100 });
    leg.line.mute();
    const mutedAt = performance.now();
    await on.until("the end", () => leg.states.length === 2);
    expect(performance.now() - mutedAt).toBeGreaterThan(150);
    expect(performance.now() - mutedAt).toBeLessThan(3 * 400);
  });

  test("is given up by the coordinator too, which then has no such leg", async () => {
    const [on, leg] = await start({ keepaliveIntervalMs: 100 });
    leg.line.mute();
    const mutedAt = performance.now();
    await on.until("the leg to go", () => on.relay.legCount === 0);
    expect(performance.now() - mutedAt).toBeLessThan(3 * 400);
  });

  test("one that lives is kept by both", async () => {
    const [on, leg] = await start({ keepaliveIntervalMs: 50 }, { keepaliveMs: 50 });
    await new Promise((resolve) => setTimeout(resolve, 800));
    expect([leg.states.length, on.relay.legCount]).toEqual([1, 1]);
  });
});

describe.each<[string, NonNullable<WorldOptions>]>([
  ["time", { rekeyAfterMs: 300 }],
  ["bytes", { rekeyAfterBytes: 300_000 }],
])("new keys by %s", (_what, options) => {
  test("come while frames flow both ways, and none is lost, doubled or out of order", async () => {
    const emitted = vi.spyOn(Client.prototype, "emit");
    const exchanges = (): number => emitted.mock.calls.filter(([event]) => event === "handshake").length;
    const [on, leg] = await start(options);
    const other = on.identity(2);
    const far = await on.webSocket(other);
    await far.bind(on.identity(1).id);
    const frame = (number: number): Uint8Array => {
      const bytes = new Uint8Array(1000);
      new DataView(bytes.buffer).setUint32(0, number);
      return bytes;
    };
    let sent = 0;
    // The first one is the opening's.
    for (const until = performance.now() + 8000; exchanges() < 4 && performance.now() < until; ) {
      for (let i = 0; i < 20; i++, sent++) {
        leg.relay.send(other.id, [frame(sent)]);
        far.send(on.identity(1).id, [frame(sent)]);
      }
      await on.until("both", () => far.received.length === sent && leg.received.length === sent);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(exchanges()).toBeGreaterThanOrEqual(4);
    const numbers = (frames: readonly { readonly frame: Uint8Array }[]): number[] =>
      frames.map(({ frame: bytes }) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(0));
    const expected = Array.from({ length: sent }, (_, i) => i);
    expect(numbers(far.received)).toEqual(expected);
    expect(numbers(leg.received)).toEqual(expected);
  });
});
