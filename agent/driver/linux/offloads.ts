/**
 * What the kernel and libcrypto may do for the data path. Everything is on by default and falls back where it is refused;
 * TUNNELMESH_OFFLOADS names those to use, separated by commas, or `none`: for tests, and for kernels that do one of them wrong.
 */
export const OFFLOADS = {
  /** Packets of the TUN device may lack their checksum (IFF_VNET_HDR, TUN_F_CSUM). The next two need it. */
  "tun-checksum": "checksums of packets",
  /** The TUN device gives and takes TCP super-packets (TUN_F_TSO4, TUN_F_TSO6). */
  "tun-tcp": "TCP super-packets",
  /** The same for UDP (TUN_F_USO4, TUN_F_USO6; Linux 6.2). */
  "tun-udp": "UDP super-packets",
  /** Frames of one size leave in one call (UDP_SEGMENT; Linux 4.18). */
  "udp-send": "sending in batches",
  /** Datagrams of one sender come in one call (UDP_GRO; Linux 5.0). */
  "udp-receive": "receiving in batches",
  /** Batches, and datagrams that are none, leave and come many in a call (sendmmsg, recvmmsg). */
  "udp-many": "several batches a call",
  libcrypto: "AES-256-GCM of libcrypto",
} as const;

export type Offload = keyof typeof OFFLOADS;
export type Offloads = ReadonlySet<Offload>;

/** @param names the value of TUNNELMESH_OFFLOADS; what is not known is ignored */
export function chooseOffloads(names: string | undefined): Offloads {
  const all = Object.keys(OFFLOADS) as Offload[];
  if (names === undefined || names === "") return new Set(all);
  const asked = new Set(names.split(",").map((name) => name.trim()));
  return new Set(all.filter((name) => asked.has(name)));
}
