/**
 * What an agent is told about where the coordinator can be reached: URLs of all listeners, STUN addresses, the SSH endpoint.
 *
 * Behind a port forward or a cloud's 1:1 NAT we only know private addresses of ours. Then the address by which the agent has reached
 * us, or `--public-host`, stands for them.
 */
import { canonicalIp, isIPv6, isPrivate, type TransportAddress } from "../../shared/address.ts";
import type { Listener } from "../config.ts";

const WILDCARDS = ["0.0.0.0", "::"];
/** Room in the `welcome` message. */
const MAX_STUN = 16;
const MAX_LISTENERS = 16;

export interface Reachable {
  readonly listeners: readonly Listener[];
  readonly stun: readonly TransportAddress[];
  readonly publicHost: string | undefined;
  /** The SSH endpoint with its host key as SSH sends it (RFC 4253 §6.6). */
  readonly ssh?: SshEndpoint | undefined;
}

export interface SshEndpoint {
  readonly host: string;
  readonly port: number;
  readonly hostKey: Uint8Array;
}

export interface Advertised {
  readonly listeners: string[];
  readonly stun: TransportAddress[];
  readonly ssh: SshEndpoint | undefined;
}

/** @param hostHeader the Host header of the agent's request, with or without a port */
export function advertised(own: Reachable, hostHeader: string | undefined): Advertised {
  const used = own.publicHost ?? hostOf(hostHeader);
  const hostFor = (bound: string): string | undefined => own.publicHost ?? (WILDCARDS.includes(bound) ? used : bound);
  const listeners = own.listeners.flatMap((listener) => {
    const host = hostFor(listener.host);
    return host === undefined ? [] : [formatUrl({ ...listener, host })];
  });
  const sshHost = own.ssh === undefined ? undefined : hostFor(own.ssh.host);
  return {
    listeners: [...new Set(listeners)].slice(0, MAX_LISTENERS),
    stun: stunFor(own.stun, used),
    ssh: own.ssh === undefined || sshHost === undefined ? undefined : { ...own.ssh, host: sshHost },
  };
}

export const formatUrl = ({ scheme, host, port }: Listener): string => {
  const isDefault = port === (scheme === "https" ? 443 : 80);
  return `${scheme}://${isIPv6(host) ? `[${host}]` : host}${isDefault ? "" : `:${port}`}`;
};

function stunFor(stun: readonly TransportAddress[], used: string | undefined): TransportAddress[] {
  const usedIp = used === undefined ? undefined : canonicalIp(used);
  if (usedIp === undefined || isPrivate(usedIp) || isLoopback(usedIp)) return stun.slice(0, MAX_STUN);
  const family = stun.filter(({ ip }) => isIPv6(ip) === isIPv6(usedIp));
  if (family.length === 0 || !family.every(({ ip }) => isPrivate(ip))) return stun.slice(0, MAX_STUN);
  const ports = [...new Set(family.map(({ port }) => port))];
  const others = stun.filter(({ ip }) => isIPv6(ip) !== isIPv6(usedIp));
  return [...ports.map((port) => ({ ip: usedIp, port })), ...others].slice(0, MAX_STUN);
}

function hostOf(header: string | undefined): string | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9.-]{1,253}))(?::\d{1,5})?$/.exec(header ?? "");
  const host = match?.[1] ?? match?.[2];
  return host === undefined ? undefined : (canonicalIp(host) ?? host.toLowerCase());
}

const isLoopback = (ip: string): boolean => ip === "::1" || ip.startsWith("127.");
