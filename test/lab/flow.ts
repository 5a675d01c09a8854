/**
 * A flow of numbered UDP packets through the overlay, and what became of it. Runs inside a host of the lab, under Bun:
 *
 *   flow.ts receive PORT                          prints one JSON line with the account when its input is closed
 *   flow.ts send ADDRESS PORT PER_SECOND SECONDS [BYTES]     ends sooner when its input is closed
 *
 * Each packet carries its number and the time of sending.
 */
import { createSocket } from "node:dgram";

export interface FlowAccount {
  readonly received: number;
  readonly highest: number;
  readonly duplicated: number;
  /** Packets that came after one with a higher number. */
  readonly reordered: number;
  /** Longest time between two arrivals, milliseconds. */
  readonly longestGapMs: number;
  /** From the sending of the first packet that arrived until then; both machines have one clock. */
  readonly firstDelayMs: number;
  /** The oldest packet on its arrival: how long anything has waited on the way. */
  readonly longestDelayMs: number;
}

/** Milliseconds that all processes of this machine agree on. */
const wallClock = (): number => performance.timeOrigin + performance.now();

const [mode, ...rest] = process.argv.slice(2);
if (mode === "receive") receive(Number(rest[0]));
else if (mode === "send")
  await send(rest[0] ?? "", Number(rest[1]), Number(rest[2]), Number(rest[3]), Number(rest[4] ?? 200));

function receive(port: number): void {
  const seen = new Set<number>();
  let highest = -1;
  let duplicated = 0;
  let reordered = 0;
  let longestGapMs = 0;
  let lastAt: number | undefined;
  let firstDelayMs = Number.NaN;
  let longestDelayMs = 0;
  const socket = createSocket({ type: "udp4", recvBufferSize: 4 * 1024 * 1024 });
  socket.on("message", (message) => {
    const now = performance.now();
    if (lastAt !== undefined) longestGapMs = Math.max(longestGapMs, now - lastAt);
    const delayMs = wallClock() - message.readDoubleBE(4);
    if (lastAt === undefined) firstDelayMs = delayMs;
    longestDelayMs = Math.max(longestDelayMs, delayMs);
    lastAt = now;
    const number = message.readUInt32BE(0);
    if (seen.has(number)) duplicated++;
    else if (number < highest) reordered++;
    seen.add(number);
    highest = Math.max(highest, number);
  });
  socket.bind(port, () => console.log("ready"));
  process.stdin.on("end", () => {
    const account: FlowAccount = {
      received: seen.size,
      highest,
      duplicated,
      reordered,
      longestGapMs,
      firstDelayMs,
      longestDelayMs,
    };
    console.log(JSON.stringify(account));
    process.exit(0);
  });
  process.stdin.resume();
}

async function send(address: string, port: number, perSecond: number, seconds: number, bytes: number): Promise<void> {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => socket.connect(port, address, resolve));
  const startedAt = performance.now();
  const total = perSecond * seconds;
  let number = 0;
  const ended = new AbortController();
  process.stdin.on("end", () => ended.abort());
  process.stdin.resume();
  while (number < total && !ended.signal.aborted) {
    const due = Math.min(total, Math.floor(((performance.now() - startedAt) / 1000) * perSecond));
    for (; number < due; number++) {
      const message = Buffer.alloc(bytes);
      message.writeUInt32BE(number, 0);
      message.writeDoubleBE(wallClock(), 4);
      // Without a route there is nobody to tell.
      socket.send(message, () => undefined);
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  console.log(JSON.stringify({ sent: number }));
  socket.close();
  process.stdin.destroy();
}
