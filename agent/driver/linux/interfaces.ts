/** The addresses that this machine has, and the one that it would send from: where host candidates come from. */
import { networkInterfaces } from "node:os";
import { canonicalIp, isIPv6, packAddress } from "../../../shared/address.ts";
import * as c from "./libc.ts";
import { Netlink } from "./netlink.ts";
import { encodeSockaddr, SOCKADDR_BYTES } from "./sockaddr.ts";
import { localAddress } from "./udp.ts";

const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_RUNNING = 0x40;
const IFA_F_TEMPORARY = 0x01;
const IFA_F_DADFAILED = 0x08;
const IFA_F_DEPRECATED = 0x20;
const IFA_F_TENTATIVE = 0x40;

export interface InterfaceAddress {
  /** Of the interface. */
  readonly name: string;
  readonly ip: string;
  readonly prefix: number;
  /** IFA_F_* of linux/if_addr.h; 0 elsewhere. */
  readonly flags: number;
  /** Up, and with a carrier. */
  readonly isUp: boolean;
  readonly isLoopback: boolean;
  readonly isTun: boolean;
  readonly isBridge: boolean;
  /** A privacy address of RFC 8981. */
  readonly isTemporary: boolean;
  /** Not to be used for new flows (RFC 4862 §5.5.4). */
  readonly isDeprecated: boolean;
}

/** Every address but those that IPv6 has not yet, or not, approved for use. */
export function listInterfaceAddresses(): InterfaceAddress[] {
  return c.libcUnavailable() === undefined ? byNetlink() : byRuntime();
}

function byNetlink(): InterfaceAddress[] {
  const netlink = new Netlink();
  try {
    const links = new Map(netlink.links().map((link) => [link.index, link]));
    return netlink.addresses().flatMap(({ index, ip, prefix, flags }) => {
      const link = links.get(index);
      if (link === undefined || (flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)) !== 0) return [];
      return {
        name: link.name,
        ip,
        prefix,
        flags,
        isUp: (link.flags & IFF_UP) !== 0 && (link.flags & IFF_RUNNING) !== 0,
        isLoopback: (link.flags & IFF_LOOPBACK) !== 0,
        // A TAP device is of the same kind, and an interface like any other: containers without root have no other.
        isTun: link.kind === "tun" && !link.isEthernet,
        isBridge: link.kind === "bridge",
        // For IPv4 the same bit means "secondary".
        isTemporary: isIPv6(ip) && (flags & IFA_F_TEMPORARY) !== 0,
        isDeprecated: (flags & IFA_F_DEPRECATED) !== 0,
      };
    });
  } finally {
    netlink.close();
  }
}

function byRuntime(): InterfaceAddress[] {
  return Object.entries(networkInterfaces()).flatMap(([name, addresses]) =>
    (addresses ?? []).flatMap((address) => {
      const ip = canonicalIp(address.address.replace(/%.*$/, ""));
      if (ip === undefined) return [];
      return {
        name,
        ip,
        prefix: Number(address.cidr?.split("/")[1] ?? (isIPv6(ip) ? 128 : 32)),
        flags: 0,
        isUp: true,
        isLoopback: address.internal,
        // Names as macOS and the BSDs give them.
        isTun: /^u?tun\d/.test(name),
        isBridge: /^(bridge|br)\d/.test(name),
        isTemporary: false,
        isDeprecated: false,
      };
    }),
  );
}

/**
 * The address that packets to `destinationIp` would leave from, undefined when there is no route. Nothing is sent: connecting a UDP
 * socket only asks the routing table. Undefined on systems other than Linux.
 */
export function sourceAddressFor(destinationIp: string): string | undefined {
  if (c.libcUnavailable() !== undefined) return undefined;
  const libc = c.libc();
  const family = isIPv6(destinationIp) ? 6 : 4;
  const fd = libc.socket(family === 6 ? c.AF_INET6 : c.AF_INET, c.SOCK_DGRAM | c.SOCK_CLOEXEC, 0);
  if (fd < 0) return undefined;
  try {
    const sockaddr = new Uint8Array(SOCKADDR_BYTES);
    // Any port but zero; 9 is "discard".
    const length = encodeSockaddr(packAddress({ ip: destinationIp, port: 9 }), family, sockaddr);
    return libc.connect(fd, sockaddr, length) < 0 ? undefined : localAddress(libc, fd)?.ip;
  } finally {
    libc.close(fd);
  }
}
