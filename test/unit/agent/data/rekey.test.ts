/** Sessions and data planes together, as the node joins them, in virtual time: new keys must not cost a packet. */
import { describe, expect, test } from "vitest";
import { HandshakeGuard } from "../../../../shared/session/handshake_guard.ts";
import { openInitiation, PeerSession, REKEY_AFTER_MS } from "../../../../shared/session/peer_session.ts";
import { X25519Key } from "../../../../shared/session/primitives.ts";
import { after, type Instant } from "../../../../shared/time.ts";
import { decodeHandshake } from "../../../../shared/wire/handshake.ts";
import { environmentOf, LIST, randomOf } from "../../shared/session/ends.ts";
import { introduce, ipv4Packet, makeSide, pathTo, PEER, selectPath, type Side, T0, UDP_LEG } from "./planes.ts";

/** One way, in milliseconds: data on the direct path, handshakes on a relay that is slower. */
const DATA_DELAY_MS = 40;
const HANDSHAKE_DELAY_MS = 170;

class Agent {
  readonly side: Side;
  readonly session: PeerSession;
  readonly key: X25519Key;
  readonly guard: HandshakeGuard;
  readonly handshakes: Uint8Array[] = [];
  established = 0;
  initiations = 0;
  #readReports = 0;

  constructor(
    which: "a" | "b",
    key: X25519Key,
    remote: X25519Key,
    limits: { rekeyAfterFrames?: number; rejectAfterFrames?: number },
  ) {
    this.side = makeSide(which, limits);
    this.key = key;
    this.guard = new HandshakeGuard(key.publicKey, randomOf(`${which} guard`));
    const environment = environmentOf(which, which === "a" ? 1000 : 2000);
    this.session = new PeerSession({
      staticKey: key,
      remoteStatic: remote.publicKey,
      environment,
      greatestTimestamp: 0,
    });
  }

  initiate(now: Instant): void {
    if (this.session.isHandshaking) return;
    this.initiations++;
    this.session.initiate(LIST, now);
    this.settle(now);
  }

  receiveHandshake(bytes: Uint8Array, now: Instant): void {
    const packet = decodeHandshake(bytes);
    if (packet === undefined || !this.guard.admit(bytes, undefined, 0, now).admitted) return;
    if (packet.type === "response") this.session.handleResponse(packet, now);
    if (packet.type === "initiation") {
      const opened = openInitiation(this.key, packet, randomOf(`ephemeral ${now}`));
      if (opened !== undefined) this.session.respond(opened, LIST, now);
    }
    this.settle(now);
  }

  /** Session to plane, plane to session, until both are quiet. */
  settle(now: Instant): void {
    const { plane, world } = this.side;
    for (;;) {
      const action = this.session.poll();
      const report = action === undefined ? world.reports[this.#readReports] : undefined;
      if (action === undefined && report === undefined) return;
      if (report !== undefined) {
        this.#readReports++;
        if (report.type === "epoch_confirmed") this.session.handleEpochConfirmed(report.localIndex, now);
        if (report.type === "epoch_exhausted") this.initiate(now);
      }
      switch (action?.type) {
        case "send_handshake":
          this.handshakes.push(action.bytes);
          break;
        case "install_epoch":
          plane.handleCommand({ ...action, peer: PEER }, now);
          break;
        case "activate_epoch":
        case "drop_epoch":
          plane.handleCommand({ ...action, peer: PEER }, now);
          break;
        case "established":
          this.established++;
          // The initiator's first frame confirms the epoch, also when it has no data to send.
          if (action.initiator)
            plane.handleCommand(
              { type: "send_control", peer: PEER, path: PATHS[this.side.ipv4] ?? NOWHERE, body: new Uint8Array(1) },
              now,
            );
          break;
        default:
      }
    }
  }
}

const NOWHERE = pathTo(makeSide("a"));
const PATHS: Record<string, ReturnType<typeof pathTo>> = {
  "100.96.0.1": pathTo(makeSide("b")),
  "100.96.0.2": pathTo(makeSide("a")),
};

describe("rekeying loses nothing, duplicates nothing and keeps the order", () => {
  test("by time, with traffic both ways on a path that has frames in flight", () => {
    const result = run({ forMs: REKEY_AFTER_MS + 20_000, stepMs: 20, limits: {} });
    expect(result.lost).toEqual([0, 0]);
    expect(result.inOrder).toEqual([true, true]);
    expect(result.established).toEqual([2, 2]);
    expect(result.drops).toEqual([{}, {}]);
  });

  test("by volume, when only one side sends", () => {
    const limits = { rekeyAfterFrames: 500, rejectAfterFrames: 2000 };
    const result = run({ forMs: 10_000, stepMs: 2, limits, senders: ["a"] });
    expect(result.lost).toEqual([0, 0]);
    expect(result.inOrder).toEqual([true, true]);
    expect(result.established[0]).toBeGreaterThan(5);
    expect(result.drops).toEqual([{}, {}]);
  });

  test("by volume, when both sides run out at the same moment and their initiations cross", () => {
    const limits = { rekeyAfterFrames: 500, rejectAfterFrames: 2000 };
    const result = run({ forMs: 6000, stepMs: 2, limits });
    expect(result.lost).toEqual([0, 0]);
    expect(result.inOrder).toEqual([true, true]);
    expect(result.initiations.every((count) => count >= 3)).toBe(true);
    expect(result.drops).toEqual([{}, {}]);
  });
});

test("an epoch that could not be renewed stops sealing at its limit, and is reported exhausted once", () => {
  const limits = { rekeyAfterFrames: 10, rejectAfterFrames: 20 };
  const { a, b } = agents(limits);
  connect(a, b);
  const world = a.side.world;
  world.reports.length = 0;
  world.datagrams.length = 0;
  for (let i = 0; i < 30; i++) a.side.plane.handlePacket(ipv4Packet(a.side.ipv4, b.side.ipv4, 60), T0);
  // One of the twenty was the control frame that confirmed the epoch.
  expect(world.datagrams.length).toBe(19);
  expect(world.reported("epoch_exhausted").length).toBe(1);
  a.side.plane.handleCommand({ type: "read_counters" }, T0);
  expect(world.reported("counters").at(-1)?.drops).toEqual({ "epoch exhausted": 11 });
});

function agents(limits: { rekeyAfterFrames?: number; rejectAfterFrames?: number }): { a: Agent; b: Agent } {
  const [one, two] = [new X25519Key(new Uint8Array(32).fill(1)), new X25519Key(new Uint8Array(32).fill(2))];
  const [a, b] = [new Agent("a", one, two, limits), new Agent("b", two, one, limits)];
  introduce(a.side, b.side);
  selectPath(a.side, b.side);
  selectPath(b.side, a.side);
  return { a, b };
}

/** The first handshake, without delay. */
function connect(a: Agent, b: Agent): void {
  a.initiate(T0);
  for (const bytes of a.handshakes.splice(0)) b.receiveHandshake(bytes, T0);
  for (const bytes of b.handshakes.splice(0)) a.receiveHandshake(bytes, T0);
  for (const { bytes } of a.side.world.take()) b.side.plane.handleDatagram(UDP_LEG, a.side.address, bytes, T0);
  b.settle(T0);
}

function run(options: {
  readonly forMs: number;
  readonly stepMs: number;
  readonly limits: { rekeyAfterFrames?: number; rejectAfterFrames?: number };
  readonly senders?: readonly ("a" | "b")[];
}) {
  const { a, b } = agents(options.limits);
  connect(a, b);
  const ends = [a, b] as const;
  const senders = options.senders ?? ["a", "b"];
  const sent = [0, 0];
  const received: number[][] = [[], []];
  let flying: { readonly at: number; readonly to: 0 | 1; readonly frame: boolean; readonly bytes: Uint8Array }[] = [];
  for (let ms = 0; ms < options.forMs + 1000; ms += options.stepMs) {
    const now = after(T0, ms);
    const due = flying.filter(({ at }) => at <= ms);
    flying = flying.filter(({ at }) => at > ms);
    for (const { to, frame, bytes } of due) {
      const end = ends[to];
      if (!frame) end.receiveHandshake(bytes, now);
      else end.side.plane.handleDatagram(UDP_LEG, ends[1 - to]?.side.address ?? new Uint8Array(18), bytes, now);
      end.settle(now);
    }
    for (const [i, end] of ends.entries()) {
      const peer = ends[1 - i] ?? end;
      if (ms < options.forMs && senders.includes(i === 0 ? "a" : "b")) {
        const packet = ipv4Packet(end.side.ipv4, peer.side.ipv4, 24);
        new DataView(packet.buffer).setUint32(20, sent[i] ?? 0);
        sent[i] = (sent[i] ?? 0) + 1;
        end.side.plane.handlePacket(packet, now);
      }
      end.session.handleTimeout(now);
      if (end.session.isRekeyDue(now)) end.initiate(now);
      end.settle(now);
      const to: 0 | 1 = i === 0 ? 1 : 0;
      for (const { bytes } of end.side.world.take()) flying.push({ at: ms + DATA_DELAY_MS, to, frame: true, bytes });
      for (const bytes of end.handshakes.splice(0))
        flying.push({ at: ms + HANDSHAKE_DELAY_MS, to, frame: false, bytes });
      for (const packet of end.side.world.delivered.splice(0)) {
        received[i]?.push(new DataView(packet.buffer, packet.byteOffset).getUint32(20));
      }
    }
  }
  for (const end of ends) end.side.plane.handleCommand({ type: "read_counters" }, T0);
  return {
    lost: [(sent[1] ?? 0) - (received[0]?.length ?? 0), (sent[0] ?? 0) - (received[1]?.length ?? 0)],
    inOrder: received.map((numbers) => numbers.every((number, i) => number === i)),
    established: ends.map((end) => end.established),
    initiations: ends.map((end) => end.initiations),
    drops: ends.map((end) => end.side.world.reported("counters").at(-1)?.drops),
  };
}
