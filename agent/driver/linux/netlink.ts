/**
 * Talks rtnetlink with the kernel: configures the TUN device, lists what the machine has, listens for changes.
 *
 * Requests are synchronous: the kernel answers within the call that asks, so that waiting for it would be ceremony. Every failure is a
 * NetlinkError with words for people.
 */
import { isIPv6 } from "../../../shared/address.ts";
import { EAGAIN, EEXIST, EINTR, ENOBUFS, ENODEV, ENOENT, EPERM, errnoText, ESRCH, ETIMEDOUT } from "./errno.ts";
import * as c from "./libc.ts";
import { PollSet } from "./poll_set.ts";
import {
  decodeNetlink,
  type DumpKind,
  encodeAddAddress,
  encodeDump,
  encodeHostRoute,
  encodeLinkUp,
  encodeNoLinkLocal,
  type InterfaceIp,
  type Link,
  type NetlinkMessage,
  type Route,
} from "./rtnetlink.ts";

const NETLINK_ROUTE = 0;
const SOL_NETLINK = 270;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
/** Links, and addresses and routes of both families: RTMGRP_* of linux/rtnetlink.h. */
const CHANGE_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/** The kernel makes dump datagrams of up to 32 KiB when the reader has room for them. */
const BUFFER_BYTES = 64 * 1024;
const ANSWER_TIMEOUT_MS = 2000;
/** A dump is torn when somebody changes the table meanwhile; a machine that always does so gets what there is. */
const DUMP_ATTEMPTS = 4;

export class NetlinkError extends Error {
  readonly errno: number;
  constructor(what: string, errno: number, text?: string) {
    const why = text ?? errnoText(errno);
    super(`${what}: ${why}${errno === EPERM ? "; run as root or with CAP_NET_ADMIN" : ""}`);
    this.name = "NetlinkError";
    this.errno = errno;
  }
}

export interface NetworkSnapshot {
  readonly links: readonly Link[];
  readonly addresses: readonly InterfaceIp[];
  readonly routes: readonly Route[];
}

export class Netlink {
  readonly #libc = c.libc();
  readonly #fd: number;
  readonly #poll: PollSet<undefined>;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  #sequence = 0;

  constructor() {
    this.#fd = openSocket(0);
    this.#poll = new PollSet<undefined>(this.#fd, undefined);
  }

  close(): void {
    this.#libc.close(this.#fd);
  }

  links(): Link[] {
    return this.#dump("link").flatMap((found) => (found.type === "link" ? [found.link] : []));
  }

  addresses(): InterfaceIp[] {
    return this.#dump("address").flatMap((found) => (found.type === "address" ? [found.address] : []));
  }

  routes(): Route[] {
    return this.#dump("route").flatMap((found) => (found.type === "route" ? [found.route] : []));
  }

  snapshot(): NetworkSnapshot {
    return { links: this.links(), addresses: this.addresses(), routes: this.routes() };
  }

  /** The number of an interface. Throws when there is none of that name. */
  linkIndex(name: string): number {
    const link = this.links().find((candidate) => candidate.name === name);
    if (link === undefined) throw new NetlinkError(`Cannot find interface "${name}"`, ENODEV);
    return link.index;
  }

  linkUp(index: number, mtu: number): void {
    // Without IPv6 in the kernel this is refused, and not needed.
    this.#request(encodeNoLinkLocal(index, this.#nextSequence()));
    this.#must(`Cannot bring interface ${index} up with MTU ${mtu}`, encodeLinkUp(index, mtu, this.#nextSequence()));
  }

  /**
   * Adds one of our own addresses, IPv4 as /32 and IPv6 as /128 unless a prefix is given.
   *
   * The kernel makes the local route of an IPv6 address in a work queue, up to 22 ms later as measured: until then packets to the
   * address are dropped.
   */
  addAddress(index: number, ip: string, prefix: number = isIPv6(ip) ? 128 : 32): void {
    this.#must(
      `Cannot add address ${ip}/${prefix} to interface ${index}`,
      encodeAddAddress(index, ip, prefix, this.#nextSequence()),
    );
  }

  /** Routes one address through an interface. False when a route to exactly this address exists already; it is left alone. */
  addHostRoute(index: number, ip: string, mtu?: number): boolean {
    const { errno, text } = this.#request(encodeHostRoute("add", index, ip, this.#nextSequence(), mtu));
    if (errno === EEXIST) return false;
    if (errno !== 0) throw new NetlinkError(`Cannot add a route to ${ip} through interface ${index}`, errno, text);
    return true;
  }

  /** Says of a route of our own how large packets may be. Connections that stand take it up with their next segment. */
  setHostRouteMtu(index: number, ip: string, mtu: number): void {
    this.#must(
      `Cannot set the packet size of the route to ${ip}`,
      encodeHostRoute("replace", index, ip, this.#nextSequence(), mtu),
    );
  }

  /** A route that is gone already is no error. */
  deleteHostRoute(index: number, ip: string): void {
    const { errno, text } = this.#request(encodeHostRoute("delete", index, ip, this.#nextSequence()));
    // No such route, or not even the interface.
    if (errno !== 0 && errno !== ESRCH && errno !== ENODEV && errno !== ENOENT) {
      throw new NetlinkError(`Cannot delete the route to ${ip} through interface ${index}`, errno, text);
    }
  }

  #nextSequence(): number {
    this.#sequence = (this.#sequence + 1) >>> 0;
    return this.#sequence;
  }

  #must(what: string, request: Uint8Array): void {
    const { errno, text } = this.#request(request);
    if (errno !== 0) throw new NetlinkError(what, errno, text);
  }

  /** Sends one request and waits for the kernel's verdict on it. */
  #request(request: Uint8Array): { errno: number; text: string | undefined } {
    const refused = this.#send(request);
    if (refused !== 0) return { errno: refused, text: undefined };
    for (;;) {
      const { errno, messages } = this.#receive();
      if (errno !== 0) return { errno, text: undefined };
      for (const answer of messages) {
        if (answer.type === "result" && answer.sequence === this.#sequence) return answer;
      }
    }
  }

  #dump(kind: DumpKind): NetlinkMessage[] {
    for (let attempt = 1; ; attempt++) {
      const { found, interrupted } = this.#dumpOnce(kind);
      if (!interrupted || attempt === DUMP_ATTEMPTS) return found;
    }
  }

  #dumpOnce(kind: DumpKind): { found: NetlinkMessage[]; interrupted: boolean } {
    const what = `Cannot list the machine's ${kind === "address" ? "addresses" : `${kind}s`}`;
    const refused = this.#send(encodeDump(kind, this.#nextSequence()));
    if (refused !== 0) throw new NetlinkError(what, refused);
    const found: NetlinkMessage[] = [];
    let interrupted = false;
    for (;;) {
      const { errno, messages } = this.#receive();
      if (errno !== 0) throw new NetlinkError(what, errno);
      for (const answer of messages) {
        if (answer.sequence !== this.#sequence) continue;
        if (answer.type === "interrupted") {
          interrupted = true;
        } else if (answer.type === "done" || answer.type === "result") {
          if (answer.errno > 0) throw new NetlinkError(what, answer.errno);
          return { found, interrupted };
        } else {
          found.push(answer);
        }
      }
    }
  }

  #send(request: Uint8Array): number {
    const sent = this.#libc.sendto(this.#fd, request, request.length, 0, null, 0);
    return sent < 0 ? this.#libc.errno() : 0;
  }

  #receive(): { errno: number; messages: readonly NetlinkMessage[] } {
    for (;;) {
      const length = this.#libc.recvfrom(this.#fd, this.#buffer, BUFFER_BYTES, c.MSG_DONTWAIT, null, null);
      if (length >= 0) return { errno: 0, messages: decodeNetlink(this.#buffer.subarray(0, length)) };
      const errno = this.#libc.errno();
      if (errno === EAGAIN) {
        if (this.#poll.wait(ANSWER_TIMEOUT_MS) === 0) return { errno: ETIMEDOUT, messages: [] };
      } else if (errno !== EINTR) {
        return { errno, messages: [] };
      }
    }
  }
}

/** A socket that becomes readable when links, addresses or routes of this machine change. */
export class NetworkWatch {
  readonly fd: number = openSocket(CHANGE_GROUPS);
  readonly #libc = c.libc();
  readonly #buffer = new Uint8Array(BUFFER_BYTES);

  /** Reads all that waits. Did anything change on an interface other than `ownIndex`? */
  drain(ownIndex: number | undefined): boolean {
    let changed = false;
    for (;;) {
      const length = this.#libc.recvfrom(this.fd, this.#buffer, BUFFER_BYTES, c.MSG_DONTWAIT, null, null);
      if (length < 0) {
        const errno = this.#libc.errno();
        if (errno === EAGAIN) return changed;
        if (errno === EINTR) continue;
        // The kernel had more news than the socket had room: something did change, and more may wait.
        changed = true;
        if (errno === ENOBUFS) continue;
        return true;
      }
      for (const news of decodeNetlink(this.#buffer.subarray(0, length))) {
        if (ownIndex === undefined || interfaceOf(news) !== ownIndex) changed = true;
      }
    }
  }

  close(): void {
    this.#libc.close(this.fd);
  }
}

function interfaceOf(news: NetlinkMessage): number | undefined {
  if (news.type === "link") return news.link.index;
  if (news.type === "address") return news.address.index;
  return news.type === "route" ? news.route.index : undefined;
}

function openSocket(groups: number): number {
  const libc = c.libc();
  const fd = libc.socket(c.AF_NETLINK, c.SOCK_RAW | c.SOCK_NONBLOCK | c.SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) throw new NetlinkError("Cannot open a netlink socket", libc.errno());
  const one = Int32Array.of(1);
  // Old kernels lack these two; then errors come without words.
  libc.setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, one, 4);
  libc.setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, one, 4);
  // `struct sockaddr_nl`: family (2), padding (2), port (4, the kernel chooses), groups (4).
  const address = Uint32Array.of(c.AF_NETLINK, 0, groups);
  if (libc.bind(fd, address, 12) < 0) {
    const errno = libc.errno();
    libc.close(fd);
    throw new NetlinkError("Cannot bind a netlink socket", errno);
  }
  return fd;
}
