/**
 * Tests of the IPv4 NAT that run when discovery has ended, on sockets of their own: hairpin (path/hairpin.ts), which takes half a second, and
 * how long an idle mapping lives (path/mapping_lifetime.ts), which takes three minutes.
 *
 * What is known of the lifetime stays until the network changes; hairpin is found out anew after each discovery.
 */
import type { TransportAddress } from "../../shared/address.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import { HairpinTest } from "../path/hairpin.ts";
import { keepaliveMs, LifetimeTest, type MappingLifetime, type ReturnAddress } from "../path/mapping_lifetime.ts";
import { isDependent } from "../path/nat_behavior.ts";
import type { DiscoveryResult } from "../path/nat_discovery.ts";

/** Joining, and the first paths, have the line and the NAT to themselves. */
const HAIRPIN_DELAY_MS = 1000;
const LIFETIME_DELAY_MS = 5000;

export interface SideTestsOptions {
  readonly random: (bytes: number) => Uint8Array;
  readonly dataLeg: () => Leg | undefined;
  readonly openLeg: () => Leg;
  readonly closeLeg: (leg: Leg) => void;
  /** A question to the first STUN server. */
  readonly ask: (leg: Leg, transactionId: Uint8Array, returnTo: ReturnAddress | undefined) => void;
  readonly indicate: (leg: Leg, to: TransportAddress, transactionId: Uint8Array) => void;
}

export class SideTests {
  readonly #options: SideTestsOptions;
  #hairpinTest: HairpinTest | undefined;
  #hairpinLeg: Leg | undefined;
  #hairpinOf: { readonly data: TransportAddress; readonly at: Instant } | undefined;
  #hairpin: boolean | undefined;
  #lifetimeTest: LifetimeTest | undefined;
  #lifetimeLeg: Leg | undefined;
  #lifetimeAt: Instant | undefined;
  #lifetime: MappingLifetime | undefined;
  /** The public address that the lifetime belongs to. */
  #publicIp: string | undefined;
  /** A path died although it was kept open as the lifetime allows. */
  #isLifetimeDoubted = false;

  constructor(options: SideTestsOptions) {
    this.#options = options;
  }

  /** Does our NAT turn packets back? Undefined: not known, or there is no NAT. */
  get hairpin(): boolean | undefined {
    return this.#hairpin;
  }

  get isTestingHairpin(): boolean {
    return this.#hairpinOf !== undefined || this.#hairpinTest !== undefined;
  }

  get lifetime(): MappingLifetime | undefined {
    return this.#lifetime;
  }

  /** @param unknownMs while nothing is known, and at most when what is known has turned out to be wrong */
  keepaliveMs(unknownMs?: number): number {
    const usual = keepaliveMs(this.#lifetime, unknownMs);
    return this.#isLifetimeDoubted ? Math.min(usual, keepaliveMs(undefined, unknownMs)) : usual;
  }

  /** An idle path has died: perhaps the NAT forgets sooner than it did in the test. */
  doubtLifetime(): void {
    this.#isLifetimeDoubted = true;
  }

  /** Discovery has ended. */
  start(result: DiscoveryResult, isAnonymous: boolean, now: Instant): void {
    const [data] = result.publicAddresses;
    this.stop();
    if (data === undefined || result.mapping === undefined) return;
    if (result.mapping === "none") this.#hairpin = undefined;
    // The port that a neighbour knows is for the coordinator alone: there is nothing to test, and no entry of the NAT's table to spend.
    else if (isDependent(result.mapping) && result.filtering === "address-and-port-dependent") this.#hairpin = false;
    // Without an account there is nobody but the user, who waits.
    else this.#hairpinOf = { data, at: isAnonymous ? now : after(now, HAIRPIN_DELAY_MS) };
    // Another network, as it seems.
    if (this.#publicIp !== data.ip) this.#forgetLifetime();
    this.#publicIp = data.ip;
    // A public address that everybody reaches has nothing that could be forgotten; anonymous questions bring no proof of an address.
    const isForgetful = result.mapping !== "none" || result.filtering !== "endpoint-independent";
    if (isForgetful && !isAnonymous && this.#lifetime === undefined) this.#lifetimeAt = after(now, LIFETIME_DELAY_MS);
    this.handleTimeout(now);
  }

  /** Discovery begins anew. */
  stop(): void {
    if (this.#hairpinLeg !== undefined) this.#options.closeLeg(this.#hairpinLeg);
    this.#hairpinLeg = undefined;
    this.#hairpinOf = undefined;
    this.#hairpinTest = undefined;
    this.#stopLifetime();
  }

  /** The network has changed. */
  forget(): void {
    this.stop();
    this.#hairpin = undefined;
    this.#publicIp = undefined;
    this.#forgetLifetime();
  }

  /** A sealed answer of the coordinator; false when it is none of ours. */
  handleResponse(
    transactionId: Uint8Array,
    answer: { readonly mapped: TransportAddress; readonly echo: Uint8Array | undefined },
    now: Instant,
  ): boolean {
    const isOurs =
      this.#hairpinTest?.handleResponse(transactionId, answer.mapped, now) === true ||
      this.#lifetimeTest?.handleResponse(transactionId, answer, now) === true;
    if (isOurs) this.#advance(now);
    return isOurs;
  }

  handleIndication(transactionId: Uint8Array, now: Instant): boolean {
    if (this.#hairpinTest?.handleIndication(transactionId) !== true) return false;
    this.#advance(now);
    return true;
  }

  handleTimeout(now: Instant): void {
    if (this.#hairpinOf !== undefined && now >= this.#hairpinOf.at) {
      const { data } = this.#hairpinOf;
      this.#hairpinOf = undefined;
      this.#hairpinLeg = this.#options.openLeg();
      this.#hairpinTest = new HairpinTest({ data, random: this.#options.random, now });
    }
    if (this.#lifetimeAt !== undefined && now >= this.#lifetimeAt) {
      this.#lifetimeAt = undefined;
      this.#lifetimeTest = new LifetimeTest({ random: this.#options.random, now });
    }
    this.#hairpinTest?.handleTimeout(now);
    this.#lifetimeTest?.handleTimeout(now);
    this.#advance(now);
  }

  deadline(): Instant | undefined {
    return earliest(
      this.#hairpinOf?.at,
      this.#hairpinTest?.deadline(),
      this.#lifetimeAt,
      this.#lifetimeTest?.deadline(),
    );
  }

  #advance(now: Instant): void {
    this.#advanceHairpin();
    this.#advanceLifetime(now);
  }

  #advanceHairpin(): void {
    const test = this.#hairpinTest;
    const [second, data] = [this.#hairpinLeg, this.#options.dataLeg()];
    if (test === undefined || second === undefined || data === undefined) return;
    for (let request = test.poll(); request !== undefined; request = test.poll()) {
      if (request.type === "ask") this.#options.ask(second, request.transactionId, undefined);
      else this.#options.indicate(request.from === "data" ? data : second, request.to, request.transactionId);
    }
    if (!test.isDone) return;
    this.#hairpin = test.works;
    this.#hairpinTest = undefined;
    this.#hairpinLeg = undefined;
    this.#options.closeLeg(second);
  }

  #advanceLifetime(now: Instant): void {
    const test = this.#lifetimeTest;
    const data = this.#options.dataLeg();
    if (test === undefined || data === undefined) return;
    for (let action = test.poll(); action !== undefined; action = test.poll()) {
      if (action.type === "open") this.#lifetimeLeg = this.#options.openLeg();
      else if (action.type === "close") this.#closeLifetimeLeg();
      else if (action.type === "ask_return") this.#options.ask(data, action.transactionId, action.returnTo);
      else if (this.#lifetimeLeg !== undefined) this.#options.ask(this.#lifetimeLeg, action.transactionId, undefined);
    }
    this.#lifetime = test.result ?? this.#lifetime;
    if (test.isDone) this.#lifetimeTest = undefined;
    else if (now >= (test.deadline() ?? now)) this.handleTimeout(now);
  }

  #stopLifetime(): void {
    this.#lifetimeAt = undefined;
    this.#lifetimeTest = undefined;
    this.#closeLifetimeLeg();
  }

  #forgetLifetime(): void {
    this.#lifetime = undefined;
    this.#isLifetimeDoubted = false;
  }

  #closeLifetimeLeg(): void {
    if (this.#lifetimeLeg !== undefined) this.#options.closeLeg(this.#lifetimeLeg);
    this.#lifetimeLeg = undefined;
  }
}
