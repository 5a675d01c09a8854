/**
 * `netcheck`: what NAT discovery found, in words and in the shape of `netcheck --json`; and a run of it without an agent, on sockets of
 * its own and with anonymous STUN.
 */
import { randomBytes } from "node:crypto";
import * as v from "valibot";
import {
  formatTransportAddress,
  isPrivate,
  parseTransportAddress,
  type TransportAddress,
} from "../../shared/address.ts";
import type { NetcheckConfig } from "../cli/config.ts";
import type { Netcheck, NatStatus } from "../local/contract.ts";
import { Gathering } from "../node/gathering.ts";
import { DATA_LEG_IPV4, DATA_LEG_IPV6 } from "../node/legs.ts";
import { natLabel } from "../path/nat_behavior.ts";
import type { PortMappingReport } from "../portmap/port_mapping.ts";
import { EXIT, systemReason, UserError } from "../state/user_error.ts";
import { nameOfProxy, openWebSocket, proxyFor } from "./bun_websocket.ts";
import { DataWorkerHost } from "./data_worker_host.ts";
import { engineClock, type Report } from "./engine.ts";
import { PortMapper } from "./port_mapper.ts";
import { portMappingVerdicts } from "./port_mapping_words.ts";
import { signalUrl } from "./signal_client.ts";
import { usableAddresses } from "./usable_addresses.ts";

const FETCH_TIMEOUT_MS = 8000;
/** Discovery itself ends after three seconds of silence. */
const DISCOVERY_TIMEOUT_MS = 6000;

const Info = v.object({ stun: v.pipe(v.array(v.pipe(v.string(), v.maxLength(64))), v.maxLength(16)) });

const SENTENCE: Readonly<Record<NatStatus["label"], string>> = {
  open: "This machine has a public address that anybody can reach: direct paths work with everyone",
  "full cone": "The router lets anybody answer once this machine has sent: direct paths work with everyone",
  "restricted cone":
    "The router lets in whom this machine has sent to: direct paths work with everyone, whatever their router",
  "port-restricted cone":
    "The router lets in only the exact addresses that this machine has sent to: direct paths work with everyone, with symmetric routers after guessing their port",
  symmetric:
    "The router uses a different port for each destination: direct paths work with everyone but other symmetric routers, with strict ones after guessing the port",
  "udp blocked": "UDP does not get out of this network: no direct paths",
  unknown: "How the router behaves is not known yet",
};

/** A symmetric router whose ports count, or come from a block. */
const PREDICTABLE =
  "The router uses a different port for each destination, but one that can be guessed: direct paths work with all but routers that pick any port at random";
const isPredictable = ({ allocation }: NatStatus): boolean => allocation === "sequential" || allocation === "block";

const COORDINATOR_INSIDE =
  "The coordinator is in this machine's own network, so it cannot tell how the router behaves towards the internet";

/** What is known of the ways to the coordinator over TCP. */
export interface CoordinatorWays {
  /** Null: not tried. */
  readonly ssh: boolean | null;
  readonly websocket: boolean;
  /** What WebSockets go through, as the user or the environment names it. */
  readonly proxy: string | undefined;
  /** Has the coordinator answered at all, by whatever way? */
  readonly isReachable: boolean;
}

/** @param portMapping undefined: switched off, or not asked */
export function netcheckOf(
  gathering: Gathering,
  ways: CoordinatorWays,
  portMapping: PortMappingReport | undefined,
): Netcheck {
  const { ssh, websocket, proxy } = ways;
  const nat = natStatusOf(gathering);
  const [address] = gathering.ipv6?.publicAddresses ?? [];
  const hasIPv4 = nat.publicAddress !== null;
  return {
    schema: 1,
    udp: hasIPv4 || address !== undefined,
    ipv4: hasIPv4 ? { ...nat, hairpin: gathering.tests.hairpin ?? null } : null,
    ipv6: {
      available: address !== undefined,
      publicAddress: address === undefined ? null : formatTransportAddress(address),
    },
    portMapping: portMappingVerdicts(portMapping, gathering),
    ssh,
    websocket,
    proxy: proxy === undefined ? null : nameOfProxy(proxy),
    summary: summaryOf(nat, address !== undefined, ways),
  };
}

export function natStatusOf(gathering: Gathering): NatStatus {
  const nat = gathering.natReport();
  const [publicAddress] = gathering.ipv4?.publicAddresses ?? [];
  const { lifetime } = gathering.tests;
  return {
    label: natLabel(nat),
    certain: nat.certain,
    mapping: nat.mapping ?? null,
    filtering: nat.filtering ?? null,
    allocation: nat.allocation ?? null,
    ports: nat.ports ?? null,
    publicAddress: publicAddress === undefined ? null : formatTransportAddress(publicAddress),
    mappingLifetimeSeconds: lifetime?.stoodSeconds ?? null,
    mappingForgottenSeconds: lifetime?.fellSeconds ?? null,
  };
}

/** Asks the coordinator where its STUN is, and runs discovery on sockets opened for it. */
export async function runNetcheck(config: NetcheckConfig, signal: AbortSignal): Promise<Netcheck> {
  const servers = await stunServers(config, signal);
  const proxy = proxyFor(config.coordinatorUrl, undefined);
  const websocket = acceptsWebSocket(config, proxy);
  const worker = await DataWorkerHost.start();
  const now = engineClock(worker.engine);
  const gathering = new Gathering((bytes) => new Uint8Array(randomBytes(bytes)));
  const done = Promise.withResolvers<void>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const withLoopback = servers.some(({ ip }) => ip === "::1" || ip.startsWith("127."));
  // A mesh on one machine has no router to ask.
  const portMapper = withLoopback ? undefined : new PortMapper({ now, onProgress: () => settle() });

  const settle = (): void => {
    for (let action = gathering.poll(); action !== undefined; action = gathering.poll()) {
      if (action.type === "send") {
        worker.send({ type: "send_datagram", path: { leg: action.leg, to: action.to }, bytes: action.bytes });
      } else if (action.type === "open_leg") {
        worker.send({ type: "open_udp", leg: action.leg, family: action.family, port: 0 });
      } else if (action.type === "close_leg") worker.send({ type: "close_udp", leg: action.leg });
    }
    clearTimeout(timer);
    const deadline = gathering.deadline();
    if (gathering.isComplete && portMapper?.isComplete !== false) done.resolve();
    else if (deadline !== undefined) {
      timer = setTimeout(
        () => {
          gathering.handleTimeout(now());
          settle();
        },
        Math.max(0, deadline - now()),
      );
    }
  };
  worker.onReport = (report: Report) => {
    if (report.type === "udp_opened" && (report.leg === DATA_LEG_IPV4 || report.leg === DATA_LEG_IPV6)) {
      gathering.setDataLeg(report.leg === DATA_LEG_IPV4 ? 4 : 6, report.leg, report.localPort);
      if (report.leg === DATA_LEG_IPV6) gathering.setCredentials({ servers, account: undefined }, now());
    } else if (report.type === "udp_failed" && report.leg === DATA_LEG_IPV6) {
      gathering.setCredentials({ servers, account: undefined }, now());
    } else if (report.type === "datagram") gathering.handleStun(report.bytes, report.leg, now());
    else return;
    settle();
  };
  void portMapper?.refresh(undefined);
  gathering.setInterfaces(usableAddresses({ isMeshAddress: () => false, withLoopback }), now());
  worker.send({ type: "open_udp", leg: DATA_LEG_IPV4, family: 4, port: 0 });
  worker.send({ type: "open_udp", leg: DATA_LEG_IPV6, family: 6, port: 0 });
  const limit = setTimeout(() => done.resolve(), DISCOVERY_TIMEOUT_MS);
  const onAbort = (): void => done.resolve();
  signal.addEventListener("abort", onAbort, { once: true });
  await done.promise;
  clearTimeout(limit);
  clearTimeout(timer);
  signal.removeEventListener("abort", onAbort);
  const portMapping = portMapper?.report;
  await Promise.all([worker.stop(), portMapper?.stop()]);
  const ways = { ssh: null, websocket: await websocket, proxy, isReachable: true };
  return netcheckOf(gathering, ways, portMapping);
}

/** Does a WebSocket to the coordinator open? Nothing is said on it. */
async function acceptsWebSocket(config: NetcheckConfig, proxy: string | undefined): Promise<boolean> {
  const { coordinatorUrl, caCertificates } = config;
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = openWebSocket(signalUrl(coordinatorUrl), {
    ...(caCertificates === undefined ? {} : { tls: { ca: caCertificates } }),
    ...(proxy === undefined ? {} : { proxy }),
  });
  const timer = setTimeout(() => resolve(false), DISCOVERY_TIMEOUT_MS);
  socket.addEventListener("open", () => resolve(true));
  socket.addEventListener("error", () => resolve(false));
  socket.addEventListener("close", () => resolve(false));
  const isOpen = await promise;
  clearTimeout(timer);
  socket.close();
  return isOpen;
}

async function stunServers(config: NetcheckConfig, signal: AbortSignal): Promise<TransportAddress[]> {
  const { coordinatorUrl, caCertificates } = config;
  const timeout = AbortSignal.timeout(FETCH_TIMEOUT_MS);
  let body: unknown;
  try {
    const response = await fetch(`${coordinatorUrl}/v1/info`, {
      signal: AbortSignal.any([signal, timeout]),
      ...(caCertificates === undefined ? {} : { tls: { ca: caCertificates } }),
    });
    body = response.ok ? await response.json() : undefined;
  } catch (error) {
    const why = timeout.aborted ? "no answer in time" : systemReason(error);
    throw new UserError(EXIT.timedOut, `Cannot reach ${coordinatorUrl}: ${why}; is the coordinator running?`, {
      cause: error,
    });
  }
  const info = v.safeParse(Info, body);
  if (!info.success) {
    throw new UserError(EXIT.badConfiguration, `${coordinatorUrl} is no TunnelMesh coordinator; check the URL`);
  }
  return info.output.stun.flatMap((text) => parseTransportAddress(text) ?? []);
}

function summaryOf(nat: NatStatus, hasIPv6: boolean, { websocket, isReachable }: CoordinatorWays): string {
  const isDoubtful = !nat.certain && nat.label !== "unknown" && nat.label !== "udp blocked";
  const doubt = isDoubtful ? " (as far as one coordinator address can tell)" : "";
  const ipv6 = hasIPv6 ? "; IPv6 works too" : "";
  const offline = websocket
    ? ""
    : isReachable
      ? "; WebSockets to the coordinator do not get through, so this machine could not join"
      : "; the coordinator is not reachable at the moment";
  const seen = parseTransportAddress(nat.publicAddress ?? "");
  const isInside = nat.label === "unknown" && seen !== undefined && isPrivate(seen.ip);
  const sentence = nat.label === "symmetric" && isPredictable(nat) ? PREDICTABLE : SENTENCE[nat.label];
  return `${isInside ? COORDINATOR_INSIDE : sentence}${doubt}${ipv6}${offline}`;
}
