/**
 * Chooses a peer's mesh addresses.
 *
 * IPv4: the hash of the id says where in the range to begin, and the first free address from there on is taken, so that a machine
 * that is removed and joins again usually gets its old one. IPv6: the range's /64 number 0 and 64 bits of the hash, which never
 * clash in practice and are tried again with another hash if they do.
 */
import ipaddr from "ipaddr.js";
import { ipBytes, ipFromBytes, isPrivate } from "../../shared/address.ts";
import { concatBytes, utf8 } from "../../shared/bytes.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { sha256 } from "../../shared/session/primitives.ts";

export const DEFAULT_MESH_IPV4 = "100.96.0.0/12";

/** Canonical text of a private IPv4 range with room for at least 6 peers, or undefined. Agents take no public addresses. */
export function parseMeshIPv4(text: string): string | undefined {
  const range = parseCidr(text, "ipv4");
  if (range === undefined || range.bits < 8 || range.bits > 29 || !isPrivate(range.network)) return undefined;
  return `${range.network}/${range.bits}`;
}

/** Canonical text of a unique local IPv6 range that holds a whole /64, or undefined. */
export function parseMeshIPv6(text: string): string | undefined {
  const range = parseCidr(text, "ipv6");
  if (range === undefined || range.bits < 16 || range.bits > 64 || !isPrivate(range.network)) return undefined;
  return `${range.network}/${range.bits}`;
}

/** A unique local /48 (RFC 4193 §3.1) from 5 random bytes. */
export const randomMeshIPv6 = (random: Uint8Array): string =>
  `${ipFromBytes(concatBytes(Uint8Array.of(0xfd), random.subarray(0, 5), new Uint8Array(10)))}/48`;

/** A free address, or undefined when the range is full. */
export function allocateMeshIPv4(cidr: string, id: PeerId, isTaken: (ip: string) => boolean): string | undefined {
  const range = parseCidr(cidr, "ipv4");
  if (range === undefined) return undefined;
  const base = readU32(ipBytes(range.network), 12);
  // Without the first address (the network) and the last (its broadcast).
  const usable = 2 ** (32 - range.bits) - 2;
  const start = readU32(sha256(utf8(id)), 0) % usable;
  for (let step = 0; step < usable; step++) {
    const ip = ipv4Text(base + 1 + ((start + step) % usable));
    if (!isTaken(ip)) return ip;
  }
  return undefined;
}

export function allocateMeshIPv6(cidr: string, id: PeerId, isTaken: (ip: string) => boolean): string {
  const network = ipBytes(cidr.split("/")[0] ?? "");
  for (let attempt = 0; ; attempt++) {
    const hash = sha256(utf8(attempt === 0 ? id : `${id} ${attempt}`));
    const ip = ipFromBytes(concatBytes(network.subarray(0, 8), hash.subarray(8, 16)));
    if (!isTaken(ip)) return ip;
  }
}

function parseCidr(text: string, kind: "ipv4" | "ipv6"): { network: string; bits: number } | undefined {
  if (!/^[0-9a-fA-F:.]+\/\d{1,3}$/.test(text) || !ipaddr.isValidCIDR(text)) return undefined;
  const [ip, bits] = ipaddr.parseCIDR(text);
  if (ip.kind() !== kind) return undefined;
  const network = kind === "ipv4" ? ipaddr.IPv4.networkAddressFromCIDR(text) : ipaddr.IPv6.networkAddressFromCIDR(text);
  return { network: network.toString(), bits };
}

const readU32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at] ?? 0) * 2 ** 24 + (bytes[at + 1] ?? 0) * 2 ** 16 + (bytes[at + 2] ?? 0) * 2 ** 8 + (bytes[at + 3] ?? 0);

const ipv4Text = (value: number): string =>
  [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join(".");
