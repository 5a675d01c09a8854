/**
 * Our own candidates: which addresses may a peer reach us at, and what does our NAT do?
 *
 * Host candidates are the usable interface addresses with the data sockets' ports; server-reflexive ones come from NAT discovery, run
 * for each address family against the coordinator; a port-mapped one is told by the gateway. The list has a generation number that grows whenever it changes.
 *
 * Pure: asks for STUN requests to be sent, is told of responses and time.
 */
import { isIPv6, isProbeable, packAddress, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { hmacSha256 } from "../../shared/session/primitives.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { CandidateList, NatReport } from "../../shared/wire/candidates.ts";
import { decodeStun, encodeStun, STUN_BINDING, verifyStunIntegrity } from "../../shared/wire/stun.ts";
import type { Leg } from "../data/plane.ts";
import type { ReturnAddress } from "../path/mapping_lifetime.ts";
import { PortSampler } from "../path/port_sampler.ts";
import {
  type DiscoverySocket,
  type DiscoveryRequest,
  type DiscoveryResult,
  NatDiscovery,
} from "../path/nat_discovery.ts";
import { candidatesOf, type Discovered, knownAddresses, type Learned, natReportOf } from "./own_candidates.ts";
import { contradicts, SeenReports } from "./seen_reports.ts";
import { SideTests } from "./side_tests.ts";

/** Keeps the data socket's mapping to the coordinator open, and notices when the address changes: under the 30 s of Linux NATs, while it is
 * not known how long ours remembers. */
const REFRESH_MS = 20_000;
/** UDP was blocked: tried again this often while nobody is in use, and for a peer in use this soon after the last try has ended. */
const BLOCKED_RETRY_MS = 30_000;
const BLOCKED_RETRY_IN_USE_MS = 1000;
/** Retries of a lost refresh before the whole discovery runs anew. */
const REFRESH_RETRY_MS = 1000;
const REFRESH_TRIES = 3;
/** STUN is asked this often at most whether it still sees what peers do not. */
const CONTRADICTION_CHECK_MS = 2000;

export interface StunCredentials {
  readonly servers: readonly TransportAddress[];
  /** Undefined: anonymous, as `netcheck` asks without an agent. Nothing is attested then, and answers carry no seal. */
  readonly account: { readonly username: string; readonly secret: Uint8Array } | undefined;
}

export interface InterfaceAddress {
  readonly ip: string;
  readonly prefixLength: number;
}

export type GatheringAction =
  | { readonly type: "send"; readonly leg: Leg; readonly to: Uint8Array; readonly bytes: Uint8Array }
  /** A socket that has never sent anything; it is closed again when discovery ends. */
  | { readonly type: "open_leg"; readonly leg: Leg; readonly family: 4 | 6 }
  | { readonly type: "close_leg"; readonly leg: Leg }
  /** Candidates or the NAT report have changed. */
  | { readonly type: "changed" }
  /** Where our router's counter stood a moment ago; undefined: no answer. */
  | { readonly type: "sampled"; readonly port: number | undefined }
  /** Discovery of IPv4 has ended with another result than before. */
  | { readonly type: "nat_detected"; readonly result: DiscoveryResult };

interface Family extends Discovered {
  readonly version: 4 | 6;
  leg: Leg | undefined;
  port: number;
  servers: readonly TransportAddress[];
  discovery: NatDiscovery | undefined;
  legs: Map<string, Leg>;
  result: DiscoveryResult | undefined;
  endedAt: Instant | undefined;
  confirmedAt: Instant | undefined;
  refreshAt: Instant | undefined;
  refresh: { readonly transactionId: Uint8Array; tries: number } | undefined;
  /** What the first server's newest answer asks to be echoed. */
  echo: Uint8Array | undefined;
}

interface StunQuestion {
  readonly to: TransportAddress;
  readonly transactionId: Uint8Array;
  readonly change?: DiscoveryRequest["change"];
  readonly echo?: Uint8Array | undefined;
  readonly returnTo?: ReturnAddress | undefined;
}

/** Fresh sockets are numbered from here; the data legs are below. */
const FIRST_TEST_LEG = 100;

export class Gathering {
  readonly #random: (bytes: number) => Uint8Array;
  readonly #actions: GatheringAction[] = [];
  readonly #families: readonly Family[] = [makeFamily(4), makeFamily(6)];
  #credentials: StunCredentials | undefined;
  /** Answers to what was asked with the last account may still be on their way. */
  #previousSecret: Uint8Array | undefined;
  #sequence = 0;
  #interfaces: readonly InterfaceAddress[] = [];
  #nextTestLeg = FIRST_TEST_LEG;
  #sampler: PortSampler | undefined;
  readonly #tests: SideTests;
  #generation = 1;
  #isConnected = true;
  #portMapped: TransportAddress | undefined;
  #hasGatewayNoAddress = false;
  readonly #reports = new SeenReports();
  #announced = "";
  #signature = "";
  #isRootless = false;
  readonly #isPortChosen: boolean;

  readonly #isGuessingOff: boolean;

  /**
   * @param isPortChosen the operator has named the port of the data sockets, so perhaps forwards it too
   * @param isGuessingOff attempts with many packets are switched off, which peers have to know
   */
  constructor(random: (bytes: number) => Uint8Array, isPortChosen = false, isGuessingOff = false) {
    this.#random = random;
    this.#isPortChosen = isPortChosen;
    this.#isGuessingOff = isGuessingOff;
    this.#tests = new SideTests({
      random,
      dataLeg: () => this.#family(4).leg,
      openLeg: () => this.#openLeg(4),
      closeLeg: (leg) => this.#actions.push({ type: "close_leg", leg }),
      ask: (leg, transactionId, returnTo) => {
        const [to] = this.#family(4).servers;
        if (to !== undefined) this.#request(leg, { to, transactionId, returnTo });
      },
      indicate: (leg, to, transactionId) => {
        const bytes = encodeStun({ class: "indication", method: STUN_BINDING, transactionId });
        this.#actions.push({ type: "send", leg, to: packAddress(to), bytes });
      },
    });
  }

  /** Tests of the IPv4 NAT beside discovery: hairpin, and how long mappings last. */
  get tests(): Pick<SideTests, "hairpin" | "lifetime" | "keepaliveMs" | "doubtLifetime"> {
    return this.#tests;
  }

  /** Whether this machine has no network device, which peers have to know. */
  setRootless(isRootless: boolean): void {
    this.#isRootless = isRootless;
    this.#noteChange();
  }

  /** The data sockets, once they are open; undefined for a family that this machine does not have. */
  setDataLeg(version: 4 | 6, leg: Leg | undefined, port: number): void {
    const family = this.#family(version);
    family.leg = leg;
    family.port = port;
  }

  setInterfaces(addresses: readonly InterfaceAddress[], now: Instant): void {
    this.#interfaces = addresses;
    this.#reports.clear();
    this.#tests.forget();
    this.#noteChange();
    this.restart(now);
  }

  setCredentials(credentials: StunCredentials, now: Instant): void {
    const before = JSON.stringify(this.#credentials?.servers);
    this.#previousSecret = this.#credentials?.account?.secret;
    this.#credentials = credentials;
    for (const family of this.#families) {
      family.servers = credentials.servers.filter((server) => isIPv6(server.ip) === (family.version === 6));
      // After a move discovery has begun before the coordinator could be reached: it goes on, with the new name.
      const isSame = before === JSON.stringify(credentials.servers);
      if (!isSame || family.discovery?.isHeard !== true) this.#startDiscovery(family, now);
    }
  }

  get isPortMapped(): boolean {
    return this.#portMapped !== undefined;
  }

  /**
   * @param address what the gateway says that it forwards to our IPv4 data socket; undefined: nothing
   * @param hasNoAddress the gateway says that it has no public address to map ports at
   */
  setPortMapping(address: TransportAddress | undefined, hasNoAddress = false): void {
    const isUsable = address !== undefined && isProbeable(address.ip);
    this.#portMapped = isUsable ? address : undefined;
    this.#hasGatewayNoAddress = hasNoAddress;
    this.#noteChange();
  }

  /** A peer's answer to a probe says where our IPv4 data socket's packets came from. */
  noteSeen(peer: string, address: TransportAddress, now: Instant): void {
    this.#reports.note(peer, address, now);
    const family = this.#family(4);
    const { confirmedAt = now, refresh, discovery } = family;
    // Has the router moved us, or does it show each another port? STUN says which, asked anew.
    const isNews =
      contradicts(address, knownAddresses(this.#learned())) && now >= after(confirmedAt, CONTRADICTION_CHECK_MS);
    if (isNews && refresh === undefined && discovery === undefined) this.#refresh(family, now);
    this.#noteChange();
  }

  /** Is there a connection to the coordinator? Without one, silence says nothing about UDP: the coordinator may be away. */
  setConnected(isConnected: boolean): void {
    this.#isConnected = isConnected;
  }

  /** Learns everything anew: at start, when the network has changed, when a refresh goes unanswered. */
  restart(now: Instant): void {
    for (const family of this.#families) this.#startDiscovery(family, now);
  }

  /** UDP answers nowhere: ask again now, if a try is not under way. */
  retryIfBlocked(now: Instant): void {
    for (const family of this.#families) {
      const { result, discovery, endedAt } = family;
      const isDue = endedAt === undefined || now >= after(endedAt, BLOCKED_RETRY_IN_USE_MS);
      if (result?.udpBlocked === true && discovery === undefined && isDue) this.#startDiscovery(family, now);
    }
  }

  /** A path has died: perhaps a router has forgotten our mapping. Asks at once instead of at the next refresh. */
  checkMapping(now: Instant): void {
    for (const family of this.#families) {
      const isKnown = family.result !== undefined && !family.result.udpBlocked;
      if (isKnown && family.discovery === undefined && family.refresh === undefined) this.#refresh(family, now);
    }
  }

  /** Finds out which IPv4 port our NAT gives next; `sampled` follows. False when there is nobody to ask. */
  samplePort(now: Instant): boolean {
    const [server] = this.#family(4).servers;
    if (server === undefined || this.#sampler !== undefined) return false;
    const leg = this.#nextTestLeg++;
    this.#sampler = new PortSampler({ leg, server, transactionId: this.#random(12), now });
    this.#actions.push({ type: "open_leg", leg, family: 4 });
    this.#advanceSampler(now);
    return true;
  }

  /** Has IPv4 discovery heard something, or given up? Until then a handshake would lack the candidates that matter. */
  get isReady(): boolean {
    const relevant = this.#families.filter((family) => family.leg !== undefined && family.servers.length > 0);
    return relevant.every(
      (family) => (family.result?.publicAddresses.length ?? 0) > 0 || family.result?.udpBlocked === true,
    );
  }

  /** Has discovery ended for every family that it was begun for? */
  get isComplete(): boolean {
    const isRunning = this.#families.some((family) => family.discovery !== undefined);
    return !isRunning && !this.#tests.isTestingHairpin && this.#families.some((family) => family.result !== undefined);
  }

  get ipv4(): DiscoveryResult | undefined {
    return this.#family(4).result;
  }

  get ipv6(): DiscoveryResult | undefined {
    return this.#family(6).result;
  }

  /** What discovery has last taken of our IPv4 NAT's ports, and when. */
  get portsTaken(): { readonly count: number; readonly at: Instant } | undefined {
    const { result, endedAt } = this.#family(4);
    return result === undefined || endedAt === undefined ? undefined : { count: result.mappings, at: endedAt };
  }

  get interfaces(): readonly InterfaceAddress[] {
    return this.#interfaces;
  }

  /** Is this one of our own transport addresses? */
  isOwn(address: TransportAddress): boolean {
    return this.#hosts().some((host) => sameTransportAddress(host, address));
  }

  /** @param withHosts false while the peer has not yet authenticated: host candidates tell about our LAN */
  candidates(withHosts: boolean): CandidateList {
    const learned = this.#learned();
    // A list with hosts replaces one without, although nothing else has changed.
    const generation = this.#generation * 2 + (withHosts ? 1 : 0);
    return {
      generation,
      nat: natReportOf(learned),
      candidates: candidatesOf(learned, withHosts),
      ...(this.#isRootless ? { isRootless: true } : {}),
      ...(this.#isGuessingOff ? { isGuessingOff: true } : {}),
    };
  }

  natReport(): NatReport {
    return natReportOf(this.#learned());
  }

  /** A STUN message on one of our legs. False when it is none of ours. */
  handleStun(bytes: Uint8Array, leg: Leg, now: Instant): boolean {
    const message = decodeStun(bytes);
    const credentials = this.#credentials;
    if (message === undefined || credentials === undefined) return false;
    if (message.class === "indication") return this.#tests.handleIndication(message.transactionId, now);
    if (message.class !== "success") return false;
    const mapped = message.xorMappedAddress;
    // An answer without the coordinator's seal could come from anybody on the path who wants us to believe in another address.
    const { account } = credentials;
    if (mapped === undefined) return false;
    const secrets = [account?.secret, this.#previousSecret].filter((secret) => secret !== undefined);
    const isSealed = secrets.some((secret) => verifyStunIntegrity(message, secret, hmacSha256));
    if (account !== undefined && !isSealed) return false;
    if (this.#sampler?.handleResponse(message.transactionId, mapped) === true) {
      this.#advanceSampler(now);
      return true;
    }
    const answer = { mapped, echo: message.echo };
    if (this.#tests.handleResponse(message.transactionId, answer, now)) return true;
    for (const family of this.#families) {
      if (family.refresh !== undefined && equalBytes(family.refresh.transactionId, message.transactionId)) {
        family.refresh = undefined;
        family.refreshAt = after(now, this.#refreshMs(family));
        family.echo = message.echo;
        const known = family.result?.publicAddresses ?? [];
        if (!known.some((address) => sameTransportAddress(address, mapped))) this.#startDiscovery(family, now);
        else {
          family.confirmedAt = now;
          this.#noteChange();
        }
        return true;
      }
      const isAt = (socket: DiscoverySocket): boolean => family.legs.get(socket) === leg;
      const request = family.discovery?.handleResponse(message.transactionId, answer, now, isAt);
      if (request === undefined) continue;
      const [server] = family.servers;
      const isFirst = server !== undefined && sameTransportAddress(request.to, server);
      if (request.socket === "data" && isFirst) family.echo = message.echo;
      this.#advance(family, now);
      return true;
    }
    return false;
  }

  handleTimeout(now: Instant): void {
    this.#advanceSampler(now);
    this.#tests.handleTimeout(now);
    for (const family of this.#families) {
      if (family.discovery !== undefined) {
        family.discovery.handleTimeout(now);
        this.#advance(family, now);
      } else if (family.refreshAt !== undefined && now >= family.refreshAt) {
        this.#refresh(family, now);
      }
    }
  }

  deadline(): Instant | undefined {
    const families = this.#families.map((family) => family.discovery?.deadline() ?? family.refreshAt);
    return earliest(this.#sampler?.deadline(), this.#tests.deadline(), ...families);
  }

  poll(): GatheringAction | undefined {
    return this.#actions.shift();
  }

  #advanceSampler(now: Instant): void {
    const sampler = this.#sampler;
    if (sampler === undefined) return;
    const { leg, server: to, transactionId } = sampler;
    if (sampler.isDue(now)) this.#request(leg, { to, transactionId });
    const { sample } = sampler;
    if (sample === "waiting") return;
    this.#sampler = undefined;
    this.#actions.push({ type: "close_leg", leg });
    this.#actions.push({ type: "sampled", port: sample === "lost" ? undefined : sample.port });
  }

  #family(version: 4 | 6): Family {
    const [ipv4, ipv6] = this.#families;
    if (ipv4 === undefined || ipv6 === undefined) throw new Error("Both address families exist");
    return version === 4 ? ipv4 : ipv6;
  }

  #hosts(): TransportAddress[] {
    return this.#interfaces.flatMap(({ ip }) => {
      const { leg, port } = this.#family(isIPv6(ip) ? 6 : 4);
      return leg === undefined ? [] : [{ ip, port }];
    });
  }

  #learned(): Learned {
    return {
      hosts: this.#hosts(),
      ipv4: this.#family(4),
      ipv6: this.#family(6),
      portMapped: this.#portMapped,
      hasGatewayNoAddress: this.#hasGatewayNoAddress,
      reports: this.#reports,
      isPortChosen: this.#isPortChosen,
    };
  }

  #startDiscovery(family: Family, now: Instant): void {
    this.#closeTestLegs(family);
    if (family.version === 4) this.#tests.stop();
    family.refreshAt = undefined;
    family.refresh = undefined;
    family.discovery = undefined;
    const hasAddress = this.#interfaces.some(({ ip }) => isIPv6(ip) === (family.version === 6));
    if (family.leg === undefined || family.servers.length === 0) return;
    if (!hasAddress && family.version === 6) {
      family.result = undefined;
      return;
    }
    // IPv6 has no translation worth a test: only the address is learned.
    const testFiltering = family.version === 4;
    family.legs = new Map([["data", family.leg]]);
    family.echo = undefined;
    family.discovery = new NatDiscovery({
      servers: family.servers,
      isLocalAddress: (address) => this.isOwn(address),
      dataPort: family.port,
      random: this.#random,
      testFiltering,
      isAnonymous: this.#credentials?.account === undefined,
      now,
    });
    this.#advance(family, now);
  }

  #advance(family: Family, now: Instant): void {
    const discovery = family.discovery;
    if (discovery === undefined) return;
    for (let request = discovery.poll(); request !== undefined; request = discovery.poll()) {
      this.#request(family.legs.get(request.socket) ?? this.#openTestLeg(family, request.socket), request);
    }
    const result = discovery.result();
    if (result.udpBlocked && !this.#isConnected) {
      this.#closeTestLegs(family);
      family.discovery = undefined;
      family.refreshAt = after(now, REFRESH_MS);
      return;
    }
    const isFirstNews = result.publicAddresses.length > 0 || result.isComplete;
    // While a new discovery has heard nothing, what was known before stays.
    if (isFirstNews) {
      family.result = result.isComplete
        ? result
        : {
            ...result,
            filtering: result.filtering ?? family.result?.filtering,
            allocation: result.allocation ?? family.result?.allocation,
          };
      this.#noteChange();
    }
    if (!result.isComplete) return;
    this.#closeTestLegs(family);
    family.discovery = undefined;
    family.endedAt = now;
    family.confirmedAt = now;
    family.refreshAt = after(now, result.udpBlocked ? BLOCKED_RETRY_MS : this.#refreshMs(family));
    if (family.version !== 4) return;
    this.#tests.start(result, this.#credentials?.account === undefined, now);
    this.#announce(result);
  }

  /** Only what differs from before is news. */
  #announce(result: DiscoveryResult): void {
    const announced = JSON.stringify([this.natReport(), result.publicAddresses[0]]);
    if (announced === this.#announced) return;
    this.#announced = announced;
    this.#actions.push({ type: "nat_detected", result });
  }

  #refreshMs(family: Family): number {
    return family.version === 4 ? this.#tests.keepaliveMs(REFRESH_MS) : REFRESH_MS;
  }

  #refresh(family: Family, now: Instant): void {
    const [server] = family.servers;
    if (family.result?.udpBlocked === true || server === undefined || family.leg === undefined) {
      this.#startDiscovery(family, now);
      return;
    }
    family.refresh ??= { transactionId: this.#random(12), tries: 0 };
    if (family.refresh.tries++ >= REFRESH_TRIES) {
      if (this.#isConnected) this.#startDiscovery(family, now);
      else {
        family.refresh = undefined;
        family.refreshAt = after(now, REFRESH_MS);
      }
      return;
    }
    const { transactionId } = family.refresh;
    this.#request(family.leg, { to: server, transactionId, echo: family.echo });
    family.refreshAt = after(now, REFRESH_RETRY_MS);
  }

  #request(leg: Leg, request: StunQuestion): void {
    const credentials = this.#credentials;
    if (credentials === undefined) return;
    const { account } = credentials;
    const bytes = encodeStun(
      {
        class: "request",
        method: STUN_BINDING,
        transactionId: request.transactionId,
        ...(account === undefined ? {} : { username: account.username, sequence: ++this.#sequence }),
        ...(request.change === undefined ? {} : { changeRequest: request.change }),
        ...(request.echo === undefined ? {} : { echo: request.echo }),
        ...(request.returnTo === undefined ? {} : { returnTo: request.returnTo }),
      },
      account === undefined ? {} : { integrity: { key: account.secret, hmacSha256 } },
    );
    this.#actions.push({ type: "send", leg, to: packAddress(request.to), bytes });
  }

  /** A socket that has never sent anything; it is closed when discovery ends. */
  #openTestLeg(family: Family, socket: string): Leg {
    const leg = this.#openLeg(family.version);
    family.legs.set(socket, leg);
    return leg;
  }

  #openLeg(version: 4 | 6): Leg {
    const leg = this.#nextTestLeg++;
    this.#actions.push({ type: "open_leg", leg, family: version });
    return leg;
  }

  #closeTestLegs(family: Family): void {
    for (const [socket, leg] of family.legs) if (socket !== "data") this.#actions.push({ type: "close_leg", leg });
    family.legs = new Map();
  }

  #noteChange(): void {
    const { candidates, nat, isRootless } = this.candidates(true);
    const signature = JSON.stringify([candidates, nat, isRootless]);
    if (signature === this.#signature) return;
    this.#signature = signature;
    this.#generation++;
    this.#actions.push({ type: "changed" });
  }
}

const makeFamily = (version: 4 | 6): Family => ({
  version,
  leg: undefined,
  port: 0,
  servers: [],
  discovery: undefined,
  legs: new Map(),
  result: undefined,
  endedAt: undefined,
  confirmedAt: undefined,
  refreshAt: undefined,
  refresh: undefined,
  echo: undefined,
});
