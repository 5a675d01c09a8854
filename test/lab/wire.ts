/**
 * The internet segment of a lab with delay: a userspace Ethernet switch, since a kernel without netem cannot delay packets.
 *
 * Usage, inside the lab's `internet` namespace: `bun wire.ts PORT...`; each PORT becomes a TAP device that the lab then moves to where
 * it belongs, while the file descriptor stays here. Prints `ready` once all exist. Standard input takes one JSON object a line,
 * `{"delayMs": 12.5, "lossPercent": 1, "duplicatePercent": 1, "reorderPercent": 1, "hops": 5}`, and its end is the end of the wire, so that it never outlives the lab.
 *
 * Every frame waits `delayMs` at the port where it comes in and again where it goes out. Both waits are one entry in a queue sorted by
 * due time, and order is kept: a frame never overtakes an earlier one, also when the delay is lowered. One ppoll(2) sleeps until a
 * frame arrives or is due (its timeout has nanoseconds, so nothing ever spins).
 */
import { dlopen, FFIType, ptr } from "bun:ffi";
import { readSync, writeSync } from "node:fs";

/** Room for an Ethernet frame of a 1500-byte MTU with a VLAN tag, rounded up. */
const SLOT_BYTES = 2_048;
/** Frames in flight at most; more are dropped, as by a full router. Enough for 1 Gbit/s at 100 ms. */
const SLOTS = 16_384;
/** Frames taken from one port before the others get their turn. */
const BURST = 64;

// linux/if_tun.h, asm-generic/fcntl.h, poll.h
const TUNSETIFF = 0x400454ca;
const IFF_TAP_NO_PI = 0x0002 | 0x1000;
const O_RDWR_NONBLOCK_CLOEXEC = 0o2 | 0o4000 | 0o2000000;
const POLLIN = 1;

const libc = dlopen("libc.so.6", {
  open: { args: ["ptr", "i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  read: { args: ["i32", "u64", "u64"], returns: FFIType.i64_fast },
  write: { args: ["i32", "u64", "u64"], returns: FFIType.i64_fast },
  ppoll: { args: ["ptr", "u64", "ptr", "u64", "u64"], returns: "i32" },
}).symbols;

const text = (value: string): Uint8Array => new TextEncoder().encode(`${value}\0`);

function openTap(name: string): number {
  const fd = libc.open(ptr(text("/dev/net/tun")), O_RDWR_NONBLOCK_CLOEXEC);
  if (fd < 0) throw new Error("Cannot open /dev/net/tun");
  const request = new Uint8Array(40); // struct ifreq
  request.set(text(name).subarray(0, 16));
  new DataView(request.buffer).setUint16(16, IFF_TAP_NO_PI, true);
  if (libc.ioctl(fd, TUNSETIFF, ptr(request)) < 0) throw new Error(`Cannot make the TAP device ${name}`);
  return fd;
}

const taps = process.argv.slice(2).map(openTap);

const memory = new Uint8Array(SLOTS * SLOT_BYTES);
const memoryAt: number = ptr(memory);
const scratch = new Uint8Array(SLOT_BYTES);
const scratchAt: number = ptr(scratch);
const frameBytes = new Uint16Array(SLOTS);
const ingress = new Uint8Array(SLOTS);
const dueAt = new Float64Array(SLOTS);
/** Slots [head, tail) hold frames in order of due time; both only grow, the slot is the remainder. */
let head = 0;
let tail = 0;

let delayMs = 0;
let lossPercent = 0;
let duplicatePercent = 0;
/** Frames that change places with the one before them of the same port, if that still waits. */
let reorderPercent = 0;
/** Routers that this wire stands for: so much less time to live has each IPv4 packet, and one that has none left is gone. */
let hops = 0;
/** MAC address, as a number, to the port behind which it was last seen. */
const portOf = new Map<number, number>();

const macAt = (offset: number): number => {
  let mac = 0;
  for (let index = 0; index < 6; index += 1) mac = mac * 256 + (memory[offset + index] ?? 0);
  return mac;
};

/** What `hops` routers do to an IPv4 packet (RFC 1812 §5.3.1); false when it does not survive. Other frames pass. */
function ageIPv4(offset: number): boolean {
  if (memory[offset + 12] !== 0x08 || memory[offset + 13] !== 0x00) return true;
  const ttl = memory[offset + 22] ?? 0;
  if (ttl <= hops) return false;
  memory[offset + 22] = ttl - hops;
  // RFC 1624: the header's sum is smaller by the same, so its complement is larger.
  const sum = ((memory[offset + 24] ?? 0) << 8) + (memory[offset + 25] ?? 0) + (hops << 8);
  const folded = (sum & 0xffff) + (sum >>> 16);
  memory[offset + 24] = folded >>> 8;
  memory[offset + 25] = folded & 0xff;
  return true;
}

const happens = (percent: number): boolean => percent > 0 && Math.random() * 100 < percent;

/** The frame in this slot, the next free one, waits for its time. */
function queue(slot: number, port: number, length: number): void {
  frameBytes[slot] = length;
  ingress[slot] = port;
  const before = tail > head ? (dueAt[(tail - 1) % SLOTS] ?? 0) : 0;
  dueAt[slot] = Math.max(before, performance.now() + 2 * delayMs);
  tail += 1;
}

function swapWithPrevious(slot: number): void {
  const previous = (slot + SLOTS - 1) % SLOTS;
  if (tail - head < 2 || ingress[previous] !== ingress[slot]) return;
  const [at, before] = [slot * SLOT_BYTES, previous * SLOT_BYTES];
  scratch.set(memory.subarray(at, at + SLOT_BYTES));
  memory.copyWithin(at, before, before + SLOT_BYTES);
  memory.set(scratch, before);
  const length = frameBytes[slot] ?? 0;
  frameBytes[slot] = frameBytes[previous] ?? 0;
  frameBytes[previous] = length;
}

function takeIn(port: number, fd: number): void {
  for (let count = 0; count < BURST && tail - head < SLOTS; count += 1) {
    const slot = tail % SLOTS;
    const length = Number(libc.read(fd, memoryAt + slot * SLOT_BYTES, SLOT_BYTES));
    if (length < 14) return;
    portOf.set(macAt(slot * SLOT_BYTES + 6), port);
    if (happens(lossPercent)) continue;
    if (hops > 0 && !ageIPv4(slot * SLOT_BYTES)) continue;
    queue(slot, port, length);
    if (happens(reorderPercent)) swapWithPrevious(slot);
    if (happens(duplicatePercent) && tail - head < SLOTS) {
      const copy = tail % SLOTS;
      memory.copyWithin(copy * SLOT_BYTES, slot * SLOT_BYTES, slot * SLOT_BYTES + length);
      queue(copy, port, frameBytes[slot] ?? length);
    }
  }
  // A full wire loses what comes next. Without reading it, ppoll would return at once for ever.
  if (tail - head >= SLOTS) {
    let length: number;
    do length = Number(libc.read(fd, scratchAt, SLOT_BYTES));
    while (length > 0);
  }
}

function deliver(slot: number): void {
  const offset = slot * SLOT_BYTES;
  const from = ingress[slot];
  const length = frameBytes[slot] ?? 0;
  // The lowest bit of the first byte marks multicast and broadcast; unknown destinations are flooded like them.
  const known = ((memory[offset] ?? 0) & 1) === 1 ? undefined : portOf.get(macAt(offset));
  for (let port = 0; port < taps.length; port += 1) {
    if (port !== from && (known === undefined || port === known)) {
      libc.write(taps[port] ?? -1, memoryAt + offset, length);
    }
  }
}

/** struct pollfd: fd i32, events i16, revents i16; the last one is standard input. */
const pollFds = new DataView(new ArrayBuffer(8 * (taps.length + 1)));
for (const [index, fd] of [...taps, 0].entries()) {
  pollFds.setInt32(index * 8, fd, true);
  pollFds.setInt16(index * 8 + 4, POLLIN, true);
}
const pollFdsAt = ptr(new Uint8Array(pollFds.buffer));
/** struct timespec: seconds i64, nanoseconds i64. */
const timeout = new BigInt64Array(2);
const timeoutAt = ptr(timeout);

const inputBuffer = new Uint8Array(4_096);
let inputRest = "";
function takeCommands(): void {
  const length = readSync(0, inputBuffer);
  if (length === 0) process.exit(0);
  const parts = (inputRest + new TextDecoder().decode(inputBuffer.subarray(0, length))).split("\n");
  inputRest = parts.pop() ?? "";
  for (const part of parts) {
    const command = JSON.parse(part) as {
      delayMs?: number;
      lossPercent?: number;
      duplicatePercent?: number;
      reorderPercent?: number;
      hops?: number;
    };
    hops = command.hops ?? hops;
    duplicatePercent = command.duplicatePercent ?? duplicatePercent;
    reorderPercent = command.reorderPercent ?? reorderPercent;
    delayMs = command.delayMs ?? delayMs;
    lossPercent = command.lossPercent ?? lossPercent;
    // Whoever changes the wire waits for this line, so that a test knows when the change holds.
    writeSync(1, "set\n");
  }
}

writeSync(1, "ready\n");
for (;;) {
  const waitMs = tail > head ? (dueAt[head % SLOTS] ?? 0) - performance.now() : Number.POSITIVE_INFINITY;
  if (waitMs > 0) {
    const bounded = Math.min(waitMs, 60_000);
    timeout[0] = BigInt(Math.floor(bounded / 1_000));
    timeout[1] = BigInt(Math.floor((bounded % 1_000) * 1e6));
  } else {
    timeout[0] = 0n;
    timeout[1] = 0n;
  }
  libc.ppoll(pollFdsAt, taps.length + 1, timeoutAt, 0, 0);
  for (const [port, fd] of taps.entries()) {
    if (pollFds.getInt16(port * 8 + 6, true) !== 0) takeIn(port, fd);
  }
  if (pollFds.getInt16(taps.length * 8 + 6, true) !== 0) takeCommands();
  const now = performance.now();
  while (tail > head && (dueAt[head % SLOTS] ?? 0) <= now) {
    deliver(head % SLOTS);
    head += 1;
  }
}
