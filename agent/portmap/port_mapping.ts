/**
 * A port mapping at the gateway, by whichever of PCP, NAT-PMP and UPnP it speaks: found, made, kept, and removed at the end.
 *
 * All three are asked for at once. PCP is preferred, then NAT-PMP, then UPnP; a preferred one that is silent is waited for a moment
 * only. The mapping is renewed at half of its lifetime, looked after each minute, and asked for anew when the gateway says
 * that it has restarted. When there is none we come back: soon after the gateway announces itself, else ever more rarely.
 *
 * Only the gateway is listened to, and only what it was asked for changes anything, announcements excepted: they bring a look forward,
 * no more often than `HINT_GAP_MS`.
 */
import { sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import {
  type ClientAction,
  type MappingClient,
  PROTOCOLS,
  type Protocol,
  type RefusalReason,
  type Target,
} from "./client.ts";
import { NatPmpClient } from "./nat_pmp_client.ts";
import { PcpClient } from "./pcp_client.ts";
import { isNotification } from "./ssdp.ts";
import { UpnpClient } from "./upnp_client.ts";

/** How long a less preferred protocol waits for the answer of a more preferred one; a gateway answers within milliseconds. */
const PATIENCE_MS = 250;
/** Without a mapping the gateway is asked again after these times, and then each of the last: somebody may have switched it on. */
const SEARCH_AGAIN_MS: readonly number[] = [5000, 10_000, 30_000, 60_000];
/** Does the gateway still have it? One datagram for PCP and NAT-PMP; calls for UPnP, so more rarely. */
const CHECK_MS: Readonly<Record<Protocol, number>> = { pcp: 60_000, "nat-pmp": 60_000, upnp: 300_000 };
/** Announcements come in bursts, and anybody on the LAN can forge them. */
const HINT_GAP_MS = 3000;
/** A renewal that failed is tried again when half of what was left has passed, but not sooner than this. */
const MIN_RENEW_MS = 10_000;
/** Gateways have given leases from seconds to years. */
const MAX_LIFETIME_MS = 24 * 3600_000;
/** A gateway cannot make us come back more often than each half of this. */
const MIN_LIFETIME_MS = 20_000;

export interface Mapping {
  readonly protocol: Protocol;
  /** As the gateway says; whether the internet agrees is not decided here. */
  readonly external: TransportAddress;
}

export interface PortMappingReport {
  /** Undefined while it is being found out, or when there is no gateway to ask. */
  readonly spoken: Readonly<Record<Protocol, boolean | undefined>>;
  readonly mapping: Mapping | undefined;
  /** Why there is no mapping although the gateway speaks one of the protocols; undefined while it speaks none. */
  readonly refusal: { readonly protocol: Protocol; readonly reason: RefusalReason } | undefined;
}

const UNKNOWN: PortMappingReport["spoken"] = { pcp: undefined, "nat-pmp": undefined, upnp: undefined };

export type PortMappingAction = ClientAction | { readonly type: "changed"; readonly mapping: Mapping | undefined };

type State =
  | { readonly state: "off" }
  | { readonly state: "searching"; readonly since: Instant; readonly refused: readonly Protocol[] }
  | { readonly state: "requesting"; readonly protocol: Protocol; readonly refused: readonly Protocol[] }
  | {
      readonly state: "held";
      readonly protocol: Protocol;
      readonly isRenewing: boolean;
      readonly renewAt: Instant;
      readonly expiresAt: Instant;
      readonly checkAt: Instant;
    }
  | { readonly state: "waiting"; readonly searchAt: Instant };

export class PortMapping {
  readonly #random: (bytes: number) => Uint8Array;
  readonly #actions: PortMappingAction[] = [];
  #target: Target | undefined;
  #clients: Partial<Record<Protocol, MappingClient>> = {};
  #state: State = { state: "off" };
  #mapping: Mapping | undefined;
  #refusal: PortMappingReport["refusal"];
  /** Searches in a row without a mapping. */
  #failures = 0;
  #httpExchanges = 0;
  /** The last answer to whether the gateway speaks it: a new search does not make that unknown. */
  #spoken: PortMappingReport["spoken"] = UNKNOWN;
  #hintedAt: Instant | undefined;
  #hintAt: Instant | undefined;

  constructor(random: (bytes: number) => Uint8Array) {
    this.#random = random;
  }

  /**
   * The gateway, our address or the port is another one, or there is no gateway. What was mapped elsewhere is forgotten: it cannot be
   * reached any more, and ends with its lease. With an unchanged target only looks after the mapping.
   *
   * @param withUpnp false where a multicast search has no place: on a public address
   */
  setTarget(target: Target | undefined, withUpnp: boolean, now: Instant): void {
    const isSame = JSON.stringify(target) === JSON.stringify(this.#target);
    if (isSame && target !== undefined) this.#hint(now);
    if (isSame) return;
    this.#target = target;
    this.#clients = {};
    this.#failures = 0;
    this.#refusal = undefined;
    this.#hintAt = undefined;
    this.#spoken = UNKNOWN;
    this.#setMapping(undefined);
    this.#state = { state: "off" };
    if (target === undefined) return;
    this.#clients = {
      pcp: new PcpClient(target, this.#random),
      "nat-pmp": new NatPmpClient(target),
      ...(withUpnp ? { upnp: new UpnpClient(target, this.#random, () => ++this.#httpExchanges) } : {}),
    };
    this.#search(now);
    this.#settle(now);
  }

  /** Something has happened that may have cost the mapping, such as the death of a path: look after it soon. */
  handleDoubt(now: Instant): void {
    this.#hint(now);
    this.#settle(now);
  }

  /** Whatever came in on the sockets that ask the gateway, or listen to its announcements. */
  handleDatagram(from: TransportAddress, bytes: Uint8Array, now: Instant): void {
    if (from.ip !== this.#target?.gateway) return;
    if (isNotification(bytes)) this.#hint(now);
    else {
      const client = this.#all().find((candidate) => candidate.handleDatagram(from, bytes, now));
      // It has something to say: perhaps it has only now been switched on.
      if (client !== undefined && this.#state.state === "waiting" && client.isSpoken === true) this.#hint(now);
    }
    this.#settle(now);
  }

  handleHttp(id: number, bytes: Uint8Array | undefined, now: Instant): void {
    this.#clients.upnp?.handleHttp(id, bytes, now);
    this.#settle(now);
  }

  handleTimeout(now: Instant): void {
    for (const client of this.#all()) client.handleTimeout(now);
    this.#settle(now);
  }

  /** Removes the mapping; what is to be sent for that comes out of `poll` at once. */
  close(now: Instant): void {
    const { state } = this.#state;
    const protocol = "protocol" in this.#state ? this.#state.protocol : undefined;
    this.#state = { state: "off" };
    for (const client of this.#all()) while (client.poll() !== undefined);
    if (protocol !== undefined && state !== "off") this.#clients[protocol]?.release(now);
    this.#setMapping(undefined);
    this.#drain();
    this.#target = undefined;
    this.#clients = {};
    this.#spoken = UNKNOWN;
  }

  deadline(): Instant | undefined {
    const state = this.#state;
    if (state.state === "off") return undefined;
    const own =
      state.state === "searching"
        ? this.#patienceEndsAt(state)
        : state.state === "held"
          ? earliest(state.isRenewing ? undefined : state.renewAt, state.checkAt, state.expiresAt)
          : state.state === "waiting"
            ? state.searchAt
            : undefined;
    return earliest(own, this.#hintAt, ...this.#all().map((client) => client.deadline()));
  }

  poll(): PortMappingAction | undefined {
    return this.#actions.shift();
  }

  /** Has the gateway been asked for everything, and either answered or been silent? */
  get isComplete(): boolean {
    const isKnown = this.#all().every(({ protocol }) => this.#spoken[protocol] !== undefined);
    return this.#state.state !== "requesting" && isKnown;
  }

  report(): PortMappingReport {
    const refusal = this.#mapping === undefined ? this.#refusal : undefined;
    return { spoken: this.#spoken, mapping: this.#mapping, refusal };
  }

  #all(): readonly MappingClient[] {
    return PROTOCOLS.flatMap((protocol) => this.#clients[protocol] ?? []);
  }

  #search(now: Instant): void {
    this.#state = { state: "searching", since: now, refused: [] };
    for (const client of this.#all()) client.search(now);
  }

  #hint(now: Instant): void {
    const soonest = this.#hintedAt === undefined ? now : after(this.#hintedAt, HINT_GAP_MS);
    this.#hintAt = earliest(this.#hintAt, soonest < now ? now : soonest);
  }

  /** Lets every answer and every deadline have its effect. */
  #settle(now: Instant): void {
    if (this.#hintAt !== undefined && now >= this.#hintAt) {
      this.#hintAt = undefined;
      this.#hintedAt = now;
      this.#look(now);
    }
    for (const client of this.#all()) {
      for (let outcome = client.outcome(); outcome !== undefined; outcome = client.outcome()) {
        this.#handleOutcome(client.protocol, outcome, now);
      }
    }
    const state = this.#state;
    if (state.state === "searching") this.#choose(state, now);
    else if (state.state === "waiting" && now >= state.searchAt) this.#search(now);
    else if (state.state === "held") this.#keep(state, now);
    this.#drain();
  }

  /** What a hint calls for. */
  #look(now: Instant): void {
    const state = this.#state;
    if (state.state === "waiting") {
      this.#failures = 0;
      this.#search(now);
    } else if (state.state === "held" && !state.isRenewing) {
      this.#state = { ...state, isRenewing: true };
      this.#clients[state.protocol]?.request(now);
    }
  }

  #handleOutcome(protocol: Protocol, outcome: NonNullable<ReturnType<MappingClient["outcome"]>>, now: Instant): void {
    const state = this.#state;
    if ((state.state !== "requesting" && state.state !== "held") || state.protocol !== protocol) return;
    switch (outcome.type) {
      case "leased": {
        const { external, lifetimeMs } = outcome.lease;
        const life = Math.max(MIN_LIFETIME_MS, Math.min(lifetimeMs ?? MAX_LIFETIME_MS, MAX_LIFETIME_MS));
        this.#failures = 0;
        this.#state = {
          state: "held",
          protocol,
          isRenewing: false,
          // RFC 6887 §11.2.1, RFC 6886 §3.3.
          renewAt: after(now, life / 2),
          expiresAt: lifetimeMs === undefined ? (Number.POSITIVE_INFINITY as Instant) : after(now, life),
          checkAt: after(now, CHECK_MS[protocol]),
        };
        this.#setMapping({ protocol, external });
        break;
      }
      case "lost":
        this.#hint(now);
        break;
      case "refused":
      case "silent":
        if (state.state === "held") {
          this.#failedRenewal(state, outcome, now);
          break;
        }
        this.#noteRefusal(protocol, outcome.type === "refused" ? outcome.reason : "it did not answer", state.refused);
        this.#state = { state: "searching", since: now, refused: [...state.refused, protocol] };
        break;
      default:
        outcome satisfies never;
    }
  }

  /** Of several, a missing address explains the others; else the most preferred protocol's. */
  #noteRefusal(protocol: Protocol, reason: RefusalReason, earlier: readonly Protocol[]): void {
    if (earlier.length === 0 || reason === "no address") this.#refusal = { protocol, reason };
  }

  #failedRenewal(state: State & { readonly state: "held" }, outcome: { readonly type: string }, now: Instant): void {
    if (outcome.type === "refused" || now >= state.expiresAt) {
      this.#setMapping(undefined);
      this.#search(now);
      return;
    }
    const left = Number.isFinite(state.expiresAt) ? state.expiresAt - now : CHECK_MS[state.protocol];
    this.#state = { ...state, isRenewing: false, renewAt: after(now, Math.max(left / 2, MIN_RENEW_MS)) };
  }

  /** Takes the most preferred protocol that the gateway speaks, once those before it have had their chance. */
  #choose(state: State & { readonly state: "searching" }, now: Instant): void {
    const isPatient = now < after(state.since, PATIENCE_MS);
    const open = this.#all().filter(({ protocol }) => !state.refused.includes(protocol));
    for (const client of open) {
      if (client.isSpoken === undefined && isPatient) return;
      if (client.isSpoken !== true || this.#target?.port === undefined) continue;
      this.#state = { state: "requesting", protocol: client.protocol, refused: state.refused };
      client.request(now);
      return;
    }
    if (open.some(({ isSpoken }) => isSpoken === undefined)) return;
    if (state.refused.length === 0) this.#refusal = undefined;
    const wait = SEARCH_AGAIN_MS[Math.min(this.#failures, SEARCH_AGAIN_MS.length - 1)] ?? 0;
    this.#failures++;
    this.#state =
      this.#target?.port === undefined ? { state: "off" } : { state: "waiting", searchAt: after(now, wait) };
  }

  #keep(state: State & { readonly state: "held" }, now: Instant): void {
    const client = this.#clients[state.protocol];
    if (now >= state.expiresAt) {
      this.#setMapping(undefined);
      this.#search(now);
    } else if (now >= state.renewAt && !state.isRenewing) {
      this.#state = { ...state, isRenewing: true };
      client?.request(now);
    } else if (now >= state.checkAt) {
      this.#state = { ...state, checkAt: after(now, CHECK_MS[state.protocol]) };
      client?.check(now);
    }
  }

  /** Undefined while nothing has answered that could be taken. */
  #patienceEndsAt({ since, refused }: State & { readonly state: "searching" }): Instant | undefined {
    const canTake = this.#target?.port !== undefined;
    const isWaiting = this.#all().some(({ protocol, isSpoken }) => isSpoken === true && !refused.includes(protocol));
    return canTake && isWaiting ? after(since, PATIENCE_MS) : undefined;
  }

  #setMapping(mapping: Mapping | undefined): void {
    const before = this.#mapping;
    const isSame =
      before?.protocol === mapping?.protocol &&
      (before === mapping ||
        (before !== undefined && mapping !== undefined && sameTransportAddress(before.external, mapping.external)));
    if (isSame) return;
    this.#mapping = mapping;
    this.#actions.push({ type: "changed", mapping });
  }

  #drain(): void {
    for (const client of this.#all()) {
      if (client.isSpoken !== undefined) this.#spoken = { ...this.#spoken, [client.protocol]: client.isSpoken };
      for (let action = client.poll(); action !== undefined; action = client.poll()) this.#actions.push(action);
    }
  }
}
