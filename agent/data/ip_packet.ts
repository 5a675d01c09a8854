/** The few fields of an IP packet that routing needs (RFC 791, RFC 8200), and a table by mesh address. Packets lie inside larger buffers. */

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
