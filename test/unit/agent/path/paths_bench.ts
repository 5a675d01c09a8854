/** PeerPaths on a bench: time is an argument, what leaves is recorded, and the peer answers when the test says so. */
import { expect } from "vitest";
import { DestinationBudget } from "../../../../agent/path/destination_budget.ts";
import type { Pair } from "../../../../agent/path/pair.ts";
import type { PathAction } from "../../../../agent/path/path_contract.ts";
import { PeerPaths } from "../../../../agent/path/peer_paths.ts";
import { type TransportAddress, unpackAddress } from "../../../../shared/address.ts";
import { type Instant, instant } from "../../../../shared/time.ts";
import { type CandidateKind, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";

export const LEG = 1;
/** RFC 8200: 1280 bytes, less the headers of IPv4 and UDP. */
export const BASE_BYTES = 1252;

export const PUBLIC: TransportAddress = { ip: "198.51.100.7", port: 4000 };
export const OTHER: TransportAddress = { ip: "198.51.100.8", port: 4000 };
export const LAN: TransportAddress = { ip: "10.0.0.7", port: 4000 };

export interface Sent {
  readonly at: number;
  readonly to: TransportAddress;
  readonly type: string;
  readonly transaction: number;
  readonly answered: boolean;
  readonly echo: number | undefined;
  /** Size of the sealed frame, where it is padded. */
  readonly frameBytes: number | undefined;
  readonly hops: number | undefined;
}

export interface BenchOptions {
  readonly isInUse?: boolean;
  readonly budget?: DestinationBudget;
  readonly isLocal?: (ip: string) => boolean;
}

export class Bench {
  readonly paths: PeerPaths;
  readonly sent: Sent[] = [];
  /** Those that seek, or prove, a size above the base. */
  readonly sizeProbes: Sent[] = [];
  readonly selections: { readonly at: number; readonly pair: Pair | undefined; readonly reason: string }[] = [];
  readonly requests: number[] = [];
  readonly fired: { readonly round: number; readonly at: number }[] = [];
  now: Instant = instant(0);
  #transactions = 0;
  #generation = 1;

  constructor(options: BenchOptions = {}) {
    this.paths = new PeerPaths({
      random: () => {
        const number = ++this.#transactions;
        return Uint8Array.of(number >>> 24, number >>> 16, number >>> 8, number);
      },
      budget: options.budget ?? new DestinationBudget(),
      isDirectlyConnected: options.isLocal ?? ((ip) => ip.startsWith("10.")),
      isForbidden: ({ ip }) => ip.startsWith("100.96."),
      allowLoopback: false,
    });
    this.paths.setLegs({ ipv4: LEG, ipv6: undefined }, this.now);
    this.paths.setEnabled(true, this.now);
    this.paths.setInUse(options.isInUse ?? true, this.now);
    this.#drain();
    this.requests.length = 0;
  }

  /** The peer names these; `attested` are those that the coordinator has seen too. */
  candidates(addresses: readonly TransportAddress[], attested: readonly TransportAddress[] = []): void {
    this.paths.setRemote(
      {
        generation: ++this.#generation,
        nat: UNKNOWN_NAT,
        candidates: addresses.map((address) => ({ kind: kindOf(address), address })),
      },
      this.now,
    );
    this.paths.setAttested(attested, this.now);
    this.#drain();
  }

  /** Both fire now. */
  fire(round = 1): void {
    this.paths.schedule(round, this.now, this.now);
    this.paths.handleTimeout(this.now);
    this.#drain();
  }

  /** Lets time pass, stopping at each deadline as the driver's timer does. */
  pass(milliseconds: number, atEach: () => void = () => {}): void {
    const end = this.now + milliseconds;
    for (;;) {
      const deadline = this.paths.deadline();
      if (deadline === undefined || deadline > end) break;
      this.now = instant(Math.max(this.now, deadline));
      this.paths.handleTimeout(this.now);
      this.#drain();
      atEach();
    }
    this.now = instant(end);
  }

  /** The peer's answer to the newest probe to `to`, from there or from `from`. */
  answer(
    to: TransportAddress,
    options: {
      readonly answered?: boolean;
      readonly from?: TransportAddress;
      readonly seenFrom?: TransportAddress;
    } = {},
  ): void {
    const probe = this.probesTo(to).at(-1);
    if (probe === undefined) throw new Error(`No probe has gone to ${to.ip}:${to.port}`);
    const message = {
      type: "probe_answer",
      transaction: probe.transaction,
      answered: options.answered ?? false,
      seenFrom: options.seenFrom ?? { ip: "198.51.100.200", port: 1 },
    } as const;
    this.paths.handleProbeAnswer(message, LEG, options.from ?? to, this.now);
    this.#drain();
  }

  /** The peer's answers to probes above the base size, if they are no larger than that. */
  answerSizes(largest: number, from: TransportAddress): void {
    for (const { transaction, frameBytes = 0 } of this.sizeProbes.splice(0)) {
      if (frameBytes > largest) continue;
      const seenFrom = { ip: "198.51.100.200", port: 1 };
      this.paths.handleProbeAnswer(
        { type: "probe_answer", transaction, answered: true, seenFrom },
        LEG,
        from,
        this.now,
      );
    }
    this.#drain();
  }

  /** A probe of the peer comes in. */
  probe(from: TransportAddress, answered = false, echo?: number): void {
    const message = {
      type: "probe",
      transaction: 77,
      round: 1,
      answered,
      ...(echo === undefined ? {} : { echo }),
    } as const;
    this.paths.handleProbe(message, LEG, from, this.now);
    this.#drain();
  }

  received(from: TransportAddress): void {
    this.paths.handleReceived(LEG, from, false, this.now);
    this.#drain();
  }

  do(action: (paths: PeerPaths, now: Instant) => void): void {
    action(this.paths, this.now);
    this.#drain();
  }

  probesTo(to: TransportAddress): Sent[] {
    return this.sent.filter((sent) => sent.type === "probe" && sent.to.ip === to.ip && sent.to.port === to.port);
  }

  answersTo(to: TransportAddress): Sent[] {
    return this.sent.filter((sent) => sent.type === "probe_answer" && sent.to.ip === to.ip && sent.to.port === to.port);
  }

  #drain(): void {
    for (let action = this.paths.poll(); action !== undefined; action = this.paths.poll()) this.#record(action);
  }

  #record(action: PathAction): void {
    switch (action.type) {
      case "send": {
        const { message } = action;
        if (message.type !== "probe" && message.type !== "probe_answer") throw new Error("Paths send probes only");
        const { type, transaction, answered, echo } = message;
        const isOfSize = action.frameBytes !== undefined && action.frameBytes > BASE_BYTES;
        (isOfSize ? this.sizeProbes : this.sent).push({
          at: this.now,
          to: unpackAddress(action.to),
          type,
          transaction,
          answered,
          echo,
          frameBytes: action.frameBytes,
          hops: action.hops,
        });
        break;
      }
      case "selected":
        this.selections.push({ at: this.now, pair: action.pair, reason: action.reason });
        break;
      case "request_round":
        this.requests.push(this.now);
        break;
      case "fired":
        this.fired.push({ round: action.round, at: action.at });
        break;
    }
  }
}

const kindOf = ({ ip }: TransportAddress): CandidateKind => (ip.startsWith("10.") ? "host" : "server-reflexive");

/** A bench with a path to `PUBLIC`, of the given round trip. */
export function direct(roundTripMs = 40, options: BenchOptions = {}): Bench {
  const bench = new Bench(options);
  bench.candidates([PUBLIC], [PUBLIC]);
  bench.fire();
  bench.now = instant(bench.now + roundTripMs);
  bench.answer(PUBLIC, { answered: true });
  expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  return bench;
}
