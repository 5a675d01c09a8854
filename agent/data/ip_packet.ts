/**
 * The few fields of an IP packet that routing needs (RFC 791, RFC 8200): a table by mesh address, and which flow a packet is of. Packets lie
 * inside larger buffers.
 */

const IPV4_SOURCE = 12;
const IPV4_DESTINATION = 16;
const IPV6_SOURCE = 8;
const IPV6_DESTINATION = 24;

/**
 * A table keyed by mesh addresses (16 bytes, IPv4 as ::ffff:a.b.c.d), looked up by what a packet says. An IPv6 packet from a mapped
 * IPv4 address does not pass for the IPv4 one.
 */
export class AddressTable<T> {
  readonly #ipv4 = new Map<number, T>();
  readonly #ipv6 = new Map<string, T>();
  /** The IPv6 address found last: packets come in rows, and a text key costs more than a comparison. */
  readonly #known = new Uint8Array(16);
  #knownValue: T | undefined;

  set(address: Uint8Array, value: T): void {
    this.#knownValue = undefined;
    if (isMappedIPv4(address)) this.#ipv4.set(word(address, 12), value);
    else this.#ipv6.set(keyOf(address, 0), value);
  }

  /** Forgets the address if it stands for this value. */
  delete(address: Uint8Array, value: T): void {
    this.#knownValue = undefined;
    if (isMappedIPv4(address)) {
      const key = word(address, 12);
      if (this.#ipv4.get(key) === value) this.#ipv4.delete(key);
    } else if (this.#ipv6.get(keyOf(address, 0)) === value) this.#ipv6.delete(keyOf(address, 0));
  }

  /** By the source of the packet between `start` and `end`; undefined for anything that is no IP packet. */
  findSource(bytes: Uint8Array, start: number, end: number): T | undefined {
    return this.#find(bytes, start, end, IPV4_SOURCE, IPV6_SOURCE);
  }

  findDestination(bytes: Uint8Array, start: number, end: number): T | undefined {
    return this.#find(bytes, start, end, IPV4_DESTINATION, IPV6_DESTINATION);
  }

  #find(bytes: Uint8Array, start: number, end: number, ipv4At: number, ipv6At: number): T | undefined {
    const version = (bytes[start] ?? 0) >> 4;
    if (version === 4 && end - start >= 20) return this.#ipv4.get(word(bytes, start + ipv4At));
    if (version !== 6 || end - start < 40) return undefined;
    const at = start + ipv6At;
    if (this.#knownValue !== undefined && isEqualAt(this.#known, bytes, at)) return this.#knownValue;
    const value = this.#ipv6.get(keyOf(bytes, at));
    if (value === undefined) return undefined;
    for (let i = 0; i < 16; i++) this.#known[i] = bytes[at + i] ?? 0;
    this.#knownValue = value;
    return value;
  }
}

const TCP = 6;
const UDP = 17;
/** UDP-Lite, SCTP and DCCP have their ports in the same place. */
const WITH_PORTS = new Set([TCP, UDP, 33, 132, 136]);

/**
 * Hash of what the packets of one flow have in common: addresses, protocol and ports. Fragments, and packets with extension headers, are told
 * apart by the others alone, so that all fragments of a packet are of one flow.
 *
 * @param key random, so that nobody can choose flows that share a number
 */
export function flowHash(bytes: Uint8Array, start: number, end: number, key: number): number {
  const version = (bytes[start] ?? 0) >> 4;
  let hash = key;
  let protocol: number;
  let ports: number;
  if (version === 4 && end - start >= 20) {
    const isFragment = ((bytes[start + 6] ?? 0) & 0x3f) !== 0 || bytes[start + 7] !== 0;
    protocol = bytes[start + 9] ?? 0;
    ports = isFragment ? end : start + ((bytes[start] ?? 0) & 15) * 4;
    hash = mix(mix(hash, word(bytes, start + IPV4_SOURCE)), word(bytes, start + IPV4_DESTINATION));
  } else if (version === 6 && end - start >= 40) {
    protocol = bytes[start + 6] ?? 0;
    ports = start + 40;
    for (let at = start + IPV6_SOURCE; at < ports; at += 4) hash = mix(hash, word(bytes, at));
  } else return 0;
  hash = mix(hash, protocol);
  if (ports + 4 <= end && WITH_PORTS.has(protocol)) hash = mix(hash, word(bytes, ports));
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** The finalizer of MurmurHash3 makes each bit of the result depend on each bit put in. */
function mix(hash: number, value: number): number {
  let mixed = hash ^ value;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return mixed ^ (mixed >>> 16);
}

const isMappedIPv4 = (address: Uint8Array): boolean =>
  address[10] === 0xff && address[11] === 0xff && address.subarray(0, 10).every((byte) => byte === 0);

const word = (bytes: Uint8Array, at: number): number =>
  ((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0);

function isEqualAt(address: Uint8Array, bytes: Uint8Array, at: number): boolean {
  for (let i = 0; i < 16; i++) if (address[i] !== bytes[at + i]) return false;
  return true;
}

function keyOf(bytes: Uint8Array, at: number): string {
  let key = "";
  for (let i = at; i < at + 16; i++) key += String.fromCharCode(bytes[i] ?? 0);
  return key;
}
