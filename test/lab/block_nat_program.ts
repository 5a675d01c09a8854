/**
 * A carrier's NAT that gives one external port to one session only, in userspace: Linux lets a port serve many destinations, so its
 * own NAT cannot stand for such a carrier.
 *
 * Usage, in the router's namespace: `bun block_nat_program.ts EXTERNAL FIRST COUNT IDLE_SECONDS`. Makes the TUN device `blocknat` and prints `ready`;
 * block_nat.ts leads UDP of both sides into it. Each line on standard input is answered with what the table is like, as JSON; `forget` empties it first. The end of standard input is
 * the end of the program.
 *
 * A session is inside address and port, remote address and port: address-and-port-dependent mapping and filtering, kept per mapping. Its
 * port is a random free one of the block. A session that has sent nothing for IDLE_SECONDS is forgotten; when no port is free,
 * what would need one is dropped.
 */
import { dlopen, FFIType, ptr } from "bun:ffi";
import { readSync, writeSync } from "node:fs";

const MAX_PACKET = 2048;
// linux/if_tun.h, asm-generic/fcntl.h, poll.h
const TUNSETIFF = 0x400454ca;
const IFF_TUN_NO_PI = 0x0001 | 0x1000;
const O_RDWR_NONBLOCK_CLOEXEC = 0o2 | 0o4000 | 0o2000000;
const POLLIN = 1;
const UDP = 17;

const libc = dlopen("libc.so.6", {
  open: { args: ["ptr", "i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  read: { args: ["i32", "ptr", "u64"], returns: FFIType.i64_fast },
  write: { args: ["i32", "ptr", "u64"], returns: FFIType.i64_fast },
  poll: { args: ["ptr", "u64", "i32"], returns: "i32" },
}).symbols;

interface Session {
  readonly key: string;
  readonly inside: number;
  readonly insidePort: number;
  readonly remote: number;
  readonly remotePort: number;
  readonly port: number;
  sentAt: number;
}

const [externalText = "", first = 0, count = 0, idleSeconds = 0] = [
  process.argv[2],
  ...process.argv.slice(3).map(Number),
];
const external = externalText.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
const byKey = new Map<string, Session>();
const byPort = new Map<number, Session>();
const totals = { peak: 0, refused: 0, sessions: 0 };

function openTun(name: string): number {
  const fd = libc.open(ptr(new TextEncoder().encode("/dev/net/tun\0")), O_RDWR_NONBLOCK_CLOEXEC);
  const request = new Uint8Array(40); // struct ifreq
  request.set(new TextEncoder().encode(name));
  new DataView(request.buffer).setUint16(16, IFF_TUN_NO_PI, true);
  if (fd < 0 || libc.ioctl(fd, TUNSETIFF, ptr(request)) < 0) throw new Error(`Cannot make the TUN device ${name}`);
  return fd;
}

const fd = openTun("blocknat");
const packet = new Uint8Array(MAX_PACKET);
const view = new DataView(packet.buffer);

function forgetIdle(now: number): void {
  for (const session of byPort.values()) {
    if (now - session.sentAt <= idleSeconds * 1000) continue;
    byPort.delete(session.port);
    byKey.delete(session.key);
  }
}

function freePort(): number | undefined {
  const free = Array.from({ length: count }, (_, index) => first + index).filter((port) => !byPort.has(port));
  return free[Math.floor(Math.random() * free.length)];
}

/** RFC 1624: what a sum over `before` becomes when `after` stands in its place. */
function adjust(offset: number, before: readonly number[], after: readonly number[]): void {
  const old = view.getUint16(offset);
  let sum = ~old & 0xffff;
  for (const word of before) sum += ~word & 0xffff;
  for (const word of after) sum += word;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  view.setUint16(offset, ~sum & 0xffff);
}

const words = (address: number, port: number): readonly number[] => [address >>> 16, address & 0xffff, port];

/** Puts another address and port in the place of the source (12, +0) or the destination (16, +2). */
function rewrite(headerBytes: number, isSource: boolean, address: number, port: number): void {
  const [addressAt, portAt] = isSource ? [12, headerBytes] : [16, headerBytes + 2];
  const before = words(view.getUint32(addressAt), view.getUint16(portAt));
  const after = words(address, port);
  adjust(10, before.slice(0, 2), after.slice(0, 2));
  // Zero says that there is no checksum.
  if (view.getUint16(headerBytes + 6) !== 0) adjust(headerBytes + 6, before, after);
  view.setUint32(addressAt, address);
  view.setUint16(portAt, port);
}

function outbound(headerBytes: number, now: number): boolean {
  const [inside, insidePort] = [view.getUint32(12), view.getUint16(headerBytes)];
  const [remote, remotePort] = [view.getUint32(16), view.getUint16(headerBytes + 2)];
  const key = `${inside}:${insidePort}>${remote}:${remotePort}`;
  let session = byKey.get(key);
  if (session === undefined) {
    const port = freePort();
    if (port === undefined) {
      totals.refused += 1;
      return false;
    }
    session = { key, inside, insidePort, remote, remotePort, port, sentAt: now };
    byKey.set(key, session);
    byPort.set(port, session);
    totals.sessions += 1;
    totals.peak = Math.max(totals.peak, byPort.size);
  }
  session.sentAt = now;
  rewrite(headerBytes, true, external, session.port);
  return true;
}

function inbound(headerBytes: number): boolean {
  const session = byPort.get(view.getUint16(headerBytes + 2));
  if (session?.remote !== view.getUint32(12) || session.remotePort !== view.getUint16(headerBytes)) return false;
  rewrite(headerBytes, false, session.inside, session.insidePort);
  return true;
}

function takePackets(): void {
  for (;;) {
    const length = Number(libc.read(fd, ptr(packet), MAX_PACKET));
    if (length <= 0) return;
    const headerBytes = ((packet[0] ?? 0) & 15) * 4;
    if ((packet[0] ?? 0) >>> 4 !== 4 || packet[9] !== UDP || length < headerBytes + 8) continue;
    const now = performance.now();
    forgetIdle(now);
    const passes = view.getUint32(16) === external ? inbound(headerBytes) : outbound(headerBytes, now);
    if (passes) libc.write(fd, ptr(packet), length);
  }
}

const inputBuffer = new Uint8Array(4096);
function takeCommands(): void {
  const length = readSync(0, inputBuffer);
  if (length === 0) process.exit(0);
  for (const line of new TextDecoder().decode(inputBuffer.subarray(0, length)).split("\n").filter(Boolean)) {
    forgetIdle(performance.now());
    if (line === "forget") {
      byKey.clear();
      byPort.clear();
      Object.assign(totals, { peak: 0, refused: 0, sessions: 0 });
    }
    writeSync(1, `${JSON.stringify({ now: byPort.size, ...totals })}\n`);
  }
}

writeSync(1, "ready\n");
/** struct pollfd: fd i32, events i16, revents i16. */
const pollFds = new DataView(new ArrayBuffer(16));
for (const [index, each] of [fd, 0].entries()) {
  pollFds.setInt32(index * 8, each, true);
  pollFds.setInt16(index * 8 + 4, POLLIN, true);
}
const pollFdsAt = ptr(new Uint8Array(pollFds.buffer));
for (;;) {
  libc.poll(pollFdsAt, 2, -1);
  if (pollFds.getInt16(6, true) !== 0) takePackets();
  if (pollFds.getInt16(14, true) !== 0) takeCommands();
}
