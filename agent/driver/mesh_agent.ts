/**
 * The running agent: drives the node (agent/node) with the data worker, the signalling connection and one timer.
 *
 * Every input goes through `#step`: into the node, then all actions out, then the timer armed. Nothing else touches the node.
 */
import { randomBytes, randomInt } from "node:crypto";
import { assertNever } from "../../shared/assert.ts";
import { formatTransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { CoordinatorMessage, RelayLeg } from "../../shared/signal/messages.ts";
import type { Instant } from "../../shared/time.ts";
import type { RungWish } from "../../shared/wire/control.ts";
import type { AgentConfig } from "../cli/config.ts";
import type { PlaneCommand } from "../data/plane.ts";
import type { NodeAction, NodeEvent, PeerView } from "../node/contract.ts";
import { DATA_LEG_IPV4, DATA_LEG_IPV6, RELAY_LEGS } from "../node/legs.ts";
import { Node } from "../node/node.ts";
import type { Mapping } from "../portmap/port_mapping.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import { proxyFor, type WebSocketOptions } from "./bun_websocket.ts";
import { challengeTimes } from "./challenge_times.ts";
import { DataWorkerHost } from "./data_worker_host.ts";
import { Enrolment } from "./enrolment.ts";
import { engineClock, type Report } from "./engine.ts";
import { logNodeEvent } from "./event_log.ts";
import { sourceAddressFor } from "./linux/interfaces.ts";
import { jumpDoorOf } from "./jump/jump_door.ts";
import { MeshRoutes } from "./mesh_routes.ts";
import type { CoordinatorWays } from "./netcheck.ts";
import { PortMapper } from "./port_mapper.ts";
import { REFUSAL_EXIT } from "./refusal_exit.ts";
import { Relays } from "./relays.ts";
import type { Streams } from "./streams/streams.ts";
import type { EchoResult, SelfView } from "./self_view.ts";
import { killsOthers, SignalClient } from "./signal_client.ts";
import { isLoopbackUrl, usableAddresses } from "./usable_addresses.ts";
import { WorkerRequests } from "./worker_requests.ts";

/** Without netlink, addresses are looked up this often; with it, this is only the flush of what may be written late. */
const HOUSEKEEPING_MS = 5000;
/** A burst of netlink messages is one change; what comes later is the next one. */
const NETWORK_SETTLE_MS = 25;
/** After `close` frames have been handed to the worker, they get this long to leave. */
const GOODBYE_MS = 60;

export class MeshAgent {
  readonly config: AgentConfig;
  readonly node: Node;
  /** Undefined when the router is not to be asked. */
  readonly portMapper: PortMapper | undefined;
  /** Set once the streams are there (streams/streams.ts). */
  streams: Streams | undefined;
  readonly #worker: DataWorkerHost;
  readonly #requests: WorkerRequests;
  readonly #enrolment: Enrolment;
  readonly #signal: SignalClient;
  readonly #relays: Relays;
  readonly #withLoopback: boolean;
  readonly #now: () => Instant;
  readonly #meshAddresses = new Set<string>();
  readonly #routed = new Map<PeerId, readonly string[]>();
  /** Mesh addresses that this step has brought. */
  readonly #unrouted: string[] = [];
  /** Called after every step: for those who wait for a condition. */
  readonly #listeners = new Set<() => void>();
  /** Of every open UDP socket, by leg. */
  readonly #localPorts = new Map<number, number>();
  readonly #echoes = new Map<number, (result: EchoResult) => void>();
  readonly #ended = Promise.withResolvers<UserError | undefined>();
  #self: SelfView = {
    name: undefined,
    meshIPv4: undefined,
    meshIPv6: undefined,
    tun: undefined,
    connected: false,
    rttMs: undefined,
    message: "connecting to the coordinator",
  };
  #routes: MeshRoutes | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #housekeeping: ReturnType<typeof setInterval> | undefined;
  #networkTimer: ReturnType<typeof setTimeout> | undefined;
  #nextSequence = randomInt(1, 1_000_000);
  #isStopping = false;
  #hasJoined = false;
  #isReady = false;
  #lastProblem: string | undefined;

  private constructor(config: AgentConfig, worker: DataWorkerHost) {
    this.config = config;
    this.#worker = worker;
    this.#requests = new WorkerRequests(worker);
    this.#enrolment = new Enrolment(config);
    this.#now = engineClock(worker.engine);
    this.#withLoopback = isLoopbackUrl(config.coordinatorUrl);
    const { identity, handshakeClock, trust } = config.state;
    this.node = new Node({
      id: identity.id,
      staticKey: identity.sessionKey,
      environment: {
        random: (bytes) => new Uint8Array(randomBytes(bytes)),
        timestamp: () => handshakeClock.next(Date.now()),
        greatestTimestamp: (id) => handshakeClock.greatestOf(id),
        rememberTimestamp: (id, timestamp) => void handshakeClock.accept(id, timestamp),
        wallClockUnixMs: () => Date.now(),
      },
      trust: { check: (name, id) => trust.check(name, id), pin: (name, id) => void trust.pinUnsaved(name, id) },
      useDirect: config.direct,
      isPortChosen: (config.udpPort ?? 0) !== 0,
      punchLimits: config.punchLimits,
      whyNoSsh: () => this.#relays.whyNoSsh(),
      allowLoopback: this.#withLoopback,
      isMeshAddress: (ip) => this.#meshAddresses.has(ip),
    });
    const mapsPorts = config.direct && config.portMapping && !this.#withLoopback;
    const onChange = (mapping?: Mapping): void =>
      this.#step((now) => this.node.handlePortMapping(mapping?.external, now));
    let hadNoAddress = false;
    const onProgress = (): void => {
      const { mapping, refusal } = this.portMapper?.report ?? {};
      const hasNoAddress = refusal?.reason === "no address";
      if (hasNoAddress !== hadNoAddress) {
        hadNoAddress = hasNoAddress;
        this.#step((now) => this.node.handlePortMapping(mapping?.external, now, hasNoAddress));
      }
      this.#notify();
    };
    const mapper = { now: this.#now, log: config.log, onChange, onProgress };
    this.portMapper = mapsPorts ? new PortMapper(mapper) : undefined;
    const webSocket = (url: string): WebSocketOptions => {
      const proxy = proxyFor(url, config.proxy);
      return {
        ...(config.caCertificates === undefined ? {} : { tls: { ca: config.caCertificates } }),
        ...(proxy === undefined ? {} : { proxy }),
      };
    };
    this.#relays = new Relays({
      url: () => this.#signal.url,
      webSocket,
      account: { id: identity.id, stateDir: config.state.dir },
      useSsh: config.ssh,
      useWebSocket: config.webSocket,
      jumpDoor: jumpDoorOf(config, () => this.#self.name),
      requestToken: () => this.#signal.send({ type: "relay_token_request" }),
      tellLost: (leg) => this.#signal.send({ type: "leg_lost", leg }),
      onProblem: (problem) => config.log.warn(problem),
      isWanted: (kind) => this.node.wantsRelay(kind, this.#now()),
      onState: (kind, isUp) => this.#step((now) => this.node.handleRelayState(kind, isUp, now)),
      onFrames: (kind, peer, frames) => this.#onRelayFrames(kind, peer, frames),
    });
    this.#signal = new SignalClient({
      urls: () => [...new Set([config.coordinatorUrl, ...(config.state.file.value.coordinator?.listeners ?? [])])],
      webSocket,
      sessionKey: identity.sessionKey,
      hello: () => this.#enrolment.hello(),
      accept: (fingerprint) => this.#enrolment.accept(fingerprint),
      now: this.#now,
      onMessage: (message) => this.#onSignal(message),
      onState: (connected, problem) => this.#onSignalState(connected, problem),
      onWrongFingerprint: (fingerprint) => this.#end(this.#enrolment.wrongCoordinator(fingerprint)),
      areOthersSilent: (milliseconds) => this.#relays.areSilent(milliseconds),
    });
    worker.onReport = (report) => this.#onReport(report);
  }

  /** Opens sockets and begins to join. Throws UserError for a port that is taken. */
  static async start(config: AgentConfig): Promise<MeshAgent> {
    const worker = await DataWorkerHost.start();
    const agent = new MeshAgent(config, worker);
    try {
      await agent.#openSockets();
    } catch (error) {
      await worker.stop();
      throw error;
    }
    agent.#signal.start();
    agent.#housekeeping = setInterval(() => agent.#housekeep(), HOUSEKEEPING_MS);
    return agent;
  }

  get self(): SelfView {
    return this.#self;
  }

  /** For `netcheck`. */
  get ways(): CoordinatorWays {
    const { connected } = this.#self;
    const proxy = proxyFor(this.#signal.url, this.config.proxy);
    return { ssh: this.#relays.verdict("ssh"), websocket: connected, proxy, isReachable: connected };
  }

  /** Is the first try under way to reach the coordinator by SSH? */
  get isTryingSsh(): boolean {
    return this.#relays.isTrying("ssh");
  }

  /** Resolves when the agent has ended by itself: with what the user should read, if anything. */
  get ended(): Promise<UserError | undefined> {
    return this.#ended.promise;
  }

  get hasJoined(): boolean {
    return this.#hasJoined;
  }

  now(): Instant {
    return this.#now();
  }

  peers(): readonly PeerView[] {
    return this.node.peers(this.#now());
  }

  peer(id: PeerId): PeerView | undefined {
    return this.node.peer(id, this.#now());
  }

  /** Calls `listener` after each step, until the returned function is called. */
  listen(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  relayStatus(): ReturnType<Relays["status"]> {
    return this.#relays.status();
  }

  /** Asks the data path for fresh counters, and waits for them; those of a data path that is held up stay as they were. */
  refreshCounters(): Promise<void> {
    return this.#requests.refreshCounters();
  }

  /** One echo; undefined when no answer came in time. */
  async echo(id: PeerId, timeoutMs: number, signal: AbortSignal): Promise<EchoResult | undefined> {
    const sequence = this.#nextSequence++;
    const { promise, resolve } = Promise.withResolvers<EchoResult | undefined>();
    this.#echoes.set(sequence, resolve);
    const timer = setTimeout(() => resolve(undefined), timeoutMs);
    const onAbort = (): void => resolve(undefined);
    signal.addEventListener("abort", onAbort, { once: true });
    this.#step((now) => void this.node.echo(id, sequence, now));
    const result = await promise;
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
    this.#echoes.delete(sequence);
    return result;
  }

  use(id: PeerId): void {
    this.#step((now) => this.node.use(id, now));
  }

  choosePath(id: PeerId, wish: RungWish): void {
    this.#step((now) => this.node.choosePath(id, wish, now));
  }

  onTrustChange(): void {
    this.#step((now) => this.node.handleTrustChange(now));
  }

  async stop(): Promise<void> {
    if (this.#isStopping) return;
    this.#isStopping = true;
    clearInterval(this.#housekeeping);
    clearTimeout(this.#networkTimer);
    this.#step((now) => this.node.close(now));
    await Promise.all([this.portMapper?.stop(), new Promise((resolve) => setTimeout(resolve, GOODBYE_MS))]);
    clearTimeout(this.#timer);
    this.#signal.stop();
    this.#relays.stop();
    this.#routes?.close();
    await this.#worker.stop();
    this.#ended.resolve(undefined);
  }

  // Opening

  async #openSockets(): Promise<void> {
    await this.#requests.openSockets(this.config.udpPort);
    this.#worker.send({ type: "watch_network" });
    this.#step((now) => {
      if (this.config.tun === "off") this.node.handleRootless(true, now);
      this.node.handleDataLegs(this.#localPorts.get(DATA_LEG_IPV4), this.#localPorts.get(DATA_LEG_IPV6), now);
      this.node.handleInterfaces(this.#interfaces(), now);
    });
    void this.portMapper?.refresh(this.#localPorts.get(DATA_LEG_IPV4));
  }

  async #openTun(): Promise<void> {
    const { tun, tunName, log } = this.config;
    if (tun === "off" || this.#self.tun !== undefined) return;
    const opened = await this.#requests.openTun(tunName);
    const problem = "name" in opened ? this.#configureTun(opened.name) : opened.problem;
    if (problem === undefined) return;
    if (tun === "on") throw new UserError(EXIT.failed, problem);
    this.#step((now) => this.node.handleRootless(true, now));
    log.info(`Running without a TUN device: ${problem}`);
  }

  /** What went wrong, or undefined. */
  #configureTun(name: string): string | undefined {
    const own = [this.#self.meshIPv4, this.#self.meshIPv6].filter((address) => address !== undefined);
    try {
      this.#routes = new MeshRoutes(name, own, this.config.log);
    } catch (error) {
      this.#worker.send({ type: "close_tun" });
      return error instanceof Error ? error.message : String(error);
    }
    this.#self = { ...this.#self, tun: name };
    this.#step((now) => this.node.handleRootless(false, now));
    this.#routes.add([...this.#routed.values()].flat());
    return undefined;
  }

  // Signalling

  #onSignalState(connected: boolean, problem: string | undefined): void {
    if (!connected) {
      const was = this.#self.connected;
      this.#self = {
        ...this.#self,
        connected: false,
        message: `cannot reach the coordinator: ${problem ?? "unknown"}`,
      };
      if (!this.#isStopping && (was || problem !== this.#lastProblem)) {
        this.config.log.warn(`Cannot reach ${this.#signal.url}: ${problem ?? "connection closed"}; trying again`);
      }
      this.#lastProblem = problem;
    }
    // The node hears of a connection with `welcome`: before, the coordinator takes nothing but a hello.
    if (!connected) {
      this.#relays.handleSignallingLost();
      // SSH would notice by itself only after half a minute.
      if (problem !== undefined && killsOthers(problem)) this.#relays.reopen();
    }
    if (!connected) this.#step((now) => this.node.handleSignalState(false, now));
  }

  #onSignal(message: CoordinatorMessage): void {
    switch (message.type) {
      case "pending":
        this.#self = { ...this.#self, message: `waiting for approval with code ${message.code}` };
        this.config.log.info(
          `Waiting for approval: on the coordinator, run "deno run -P coordinator/main.ts peer approve ${message.code}"`,
          { code: message.code },
        );
        this.#notify();
        return;
      case "refused":
        this.#end(new UserError(REFUSAL_EXIT[message.reason], message.message));
        return;
      case "clock_request":
        if (message.roundTripMs !== undefined) this.#self = { ...this.#self, rttMs: message.roundTripMs };
        return;
      case "welcome":
        this.#meshAddresses.add(message.meshIPv4).add(message.meshIPv6);
        this.#self = {
          ...this.#self,
          name: message.name,
          meshIPv4: message.meshIPv4,
          meshIPv6: message.meshIPv6,
          connected: true,
          message: undefined,
        };
        this.#enrolment.saveJoined(this.#self, message.listeners);
        this.#step((now) => {
          this.node.handleSignalState(true, now);
          this.node.handleSignal(message, now);
        });
        this.#relays.handleWelcome(message.ssh, message.relayToken);
        void this.#afterWelcome();
        return;
      case "pong":
        return;
      case "relay_token":
        this.#relays.handleToken(message.token);
        return;
      default:
        this.#step((now) => this.node.handleSignal(message, now));
    }
  }

  /** For the streams, whose machines live beside the node. */
  sendPlane(command: Extract<PlaneCommand, { type: "turn" | "turn_listeners" | "send_streams" }>): void {
    this.#worker.send(command);
  }

  /** The way into the data path is short: only who sent them is looked up. */
  #onRelayFrames(kind: RelayLeg, peer: PeerId, frames: readonly Uint8Array[]): void {
    const from = this.node.relaySource(peer);
    if (from !== undefined) this.#worker.send({ type: "receive_frames", leg: RELAY_LEGS[kind], from, frames });
  }

  async #afterWelcome(): Promise<void> {
    if (this.#hasJoined) return;
    this.#hasJoined = true;
    try {
      await this.#openTun();
    } catch (error) {
      this.#end(error instanceof UserError ? error : new UserError(EXIT.failed, String(error)));
      return;
    }
    const { name, meshIPv4, meshIPv6, tun } = this.#self;
    this.config.log.event({
      event: "joined",
      name: name ?? "",
      id: this.config.state.identity.id,
      meshIPv4: meshIPv4 ?? "",
      meshIPv6: meshIPv6 ?? "",
      tun: tun ?? null,
      coordinator: this.config.coordinatorUrl,
    });
    this.#isReady = true;
    this.#notify();
  }

  /** Joined, and the TUN device, if any, is up. */
  get isReady(): boolean {
    return this.#isReady;
  }

  // The node

  #onReport(report: Report): void {
    this.#requests.handle(report);
    switch (report.type) {
      case "udp_opened":
        this.#localPorts.set(report.leg, report.localPort);
        break;
      case "tun_opened":
      case "engine_counters":
      case "stopped":
        break;
      case "udp_failed":
        this.config.log.debug(`UDP socket ${report.leg} failed: ${report.message}`);
        break;
      case "tun_failed":
        if (report.code === "lost") {
          this.config.log.error(`The TUN device was taken away: ${report.message}`);
          this.#self = { ...this.#self, tun: undefined };
          this.#step((now) => this.node.handleRootless(true, now));
        }
        break;
      case "network_changed":
        this.#networkTimer ??= setTimeout(() => this.#onNetworkChanged(), NETWORK_SETTLE_MS);
        break;
      case "plane_failed":
        this.config.log.error(`Bug in the data path: ${report.message}`, { suppressed: report.suppressed });
        break;
      case "stream_frames":
      case "turned": {
        const peer = this.node.peerOfSlot(report.peer);
        if (peer !== undefined) this.streams?.handleReport(peer, report);
        break;
      }
      case "engine_failed":
        this.#end(new UserError(EXIT.failed, `The data path has failed: ${report.message}`));
        break;
      default:
        this.#step((now) => this.node.handleReport(report, now));
    }
  }

  #onNetworkChanged(): void {
    this.#networkTimer = undefined;
    const hasMoved = this.#signal.hasMoved;
    this.#step((now) => this.node.handleInterfaces(this.#interfaces(), now, hasMoved));
    if (hasMoved) this.#signal.reopen();
    void this.portMapper?.refresh(this.#localPorts.get(DATA_LEG_IPV4));
    this.#signal.retryNow();
    this.#relays.retryNow();
    this.#challenge();
  }

  /** The connections to the coordinator may have died with whatever just happened: ask them, and open new ones if they are silent. */
  #challenge(): void {
    const times = challengeTimes(this.#self.rttMs);
    this.#relays.challenge(times.timeoutMs);
    this.#signal.challenge(times);
    this.portMapper?.doubt();
  }

  #interfaces() {
    return usableAddresses({
      isMeshAddress: (ip) => this.#meshAddresses.has(ip),
      withLoopback: this.#withLoopback,
    });
  }

  #housekeep(): void {
    this.config.state.handshakeClock.flush(Date.now());
    if (this.#worker.engine !== "linux") this.#step((now) => this.node.handleInterfaces(this.#interfaces(), now));
  }

  /** One input in, every action out, one timer armed. */
  #step(input: (now: Instant) => void): void {
    input(this.#now());
    for (let action = this.node.poll(); action !== undefined; action = this.node.poll()) this.#perform(action);
    // One write and one look at the routes for all peers of a list.
    this.#enrolment.savePins();
    if (this.#unrouted.length > 0) this.#routes?.add(this.#unrouted.splice(0));
    this.#arm();
    this.#notify();
  }

  #perform(action: NodeAction): void {
    switch (action.type) {
      case "signal":
        this.#signal.send(action.message);
        break;
      case "plane":
        this.#worker.send(action.command);
        break;
      case "open_leg":
        this.#worker.send({ type: "open_udp", leg: action.leg, family: action.family, port: 0 });
        break;
      case "close_leg":
        this.#worker.send({ type: "close_udp", leg: action.leg });
        this.#localPorts.delete(action.leg);
        break;
      case "relay_open":
        this.#relays.open(action.kind, action.peer);
        break;
      case "relay_close":
        this.#relays.close(action.kind, action.peer);
        break;
      case "relay_send":
        this.#relays.send(action.kind, action.peer, action.frames, action.lanes);
        break;
      case "event":
        this.#onEvent(action.event);
        break;
      default:
        assertNever(action);
    }
  }

  #arm(): void {
    clearTimeout(this.#timer);
    const deadline = this.node.deadline();
    if (deadline === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#step((now) => this.node.handleTimeout(now));
      },
      Math.max(0, deadline - this.#now()),
    );
  }

  #notify(): void {
    for (const listener of this.#listeners) listener();
  }

  #end(error: UserError): void {
    this.#ended.resolve(error);
  }

  #onEvent(event: NodeEvent): void {
    this.streams?.handleNodeEvent(event);
    const hasDied = event.type === "path_changed" && event.from === "direct" && event.to !== "direct";
    if (hasDied || event.type === "path_suspect") this.#challenge();
    if (event.type === "route_added") {
      this.#meshAddresses.add(event.meshIPv4).add(event.meshIPv6);
      this.#routed.set(event.id, [event.meshIPv4, event.meshIPv6]);
      this.#unrouted.push(event.meshIPv4, event.meshIPv6);
    } else if (event.type === "route_removed") {
      this.#routed.delete(event.id);
      this.#routes?.remove([event.meshIPv4, event.meshIPv6]);
    } else if (event.type === "mtu_changed") {
      // What is known while a search runs is provisional: larger packets go as fragments meanwhile.
      if (event.isSettled) this.#routes?.setMtu(this.#routed.get(event.id) ?? [], event.packetBytes);
    } else if (event.type === "echo_answer") {
      const { sequence, roundTripMs, path } = event;
      this.#echoes.get(sequence)?.({ sequence, roundTripMs, path });
    }
    logNodeEvent(this.config.log, event, (remoteIp, leg) => this.localAddressTo(remoteIp, leg));
  }

  /** Our end of a direct path, as `ip:port`. */
  localAddressTo(remoteIp: string, leg: number): string | undefined {
    const ip = sourceAddressFor(remoteIp);
    const port = this.#localPorts.get(leg);
    return ip === undefined || port === undefined ? undefined : formatTransportAddress({ ip, port });
  }
}
