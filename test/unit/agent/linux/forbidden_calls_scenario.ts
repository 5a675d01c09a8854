/**
 * Sends and receives where the kernel, or a sandbox before it, does not know the calls for many messages:
 *
 *   forbidden_calls_scenario.ts ERRNO    what sendmmsg and recvmmsg fail with; prints what arrived as one line of JSON
 *
 * A seccomp filter (seccomp(2)) stands for that kernel; it holds for this thread until the program ends.
 */
import { dlopen, ptr } from "bun:ffi";
import { chooseOffloads } from "../../../../agent/driver/linux/offloads.ts";
import { UdpSocket } from "../../../../agent/driver/linux/udp.ts";
import { packAddress } from "../../../../shared/address.ts";

const PR_SET_NO_NEW_PRIVS = 38;
const PR_SET_SECCOMP = 22;
const SECCOMP_MODE_FILTER = 2;
const SECCOMP_RET_ALLOW = 0x7fff0000;
const SECCOMP_RET_ERRNO = 0x00050000;
const LOAD_WORD = 0x20;
const JUMP_IF_EQUAL = 0x15;
const RETURN = 0x06;
/** recvmmsg and sendmmsg. */
const FORBIDDEN = process.arch === "arm64" ? [243, 269] : [299, 307];

forbid(FORBIDDEN, Number(process.argv[2]));
const [a, b] = [open(), open()];
const to = packAddress(b.local);
const lengths = [100, 900, 70, 1000, 71];
const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((sum, length) => sum + length, 0));
const runs = lengths.map((length, i) => ({
  path: { leg: 1, to },
  start: starts[i] ?? 0,
  length,
  frameBytes: length === 900 ? 400 : length,
  errno: -1,
}));
const received: number[] = [];
for (let round = 0; round < 2; round++) {
  a.sendRuns(new Uint8Array(3000), runs, runs.length);
  for (let count = b.receive(); count >= 0; count = b.receive()) {
    for (const { length, frameBytes } of b.incoming.slice(0, count)) {
      for (let at = 0; at < length; at += frameBytes) received.push(Math.min(frameBytes, length - at));
    }
  }
}
console.log(JSON.stringify({ errnos: runs.map(({ errno }) => errno), received }));

function open(): UdpSocket {
  return UdpSocket.open({ family: 4, address: "127.0.0.1", port: 0, offloads: chooseOffloads(undefined) });
}

/** Each instruction: code (2), jumps if true and if false (1 + 1), operand (4). */
function forbid(calls: readonly number[], errno: number): void {
  const words = [
    [LOAD_WORD, 0, 0, 0],
    ...calls.map((call, i) => [JUMP_IF_EQUAL, calls.length - i, 0, call]),
    [RETURN, 0, 0, SECCOMP_RET_ALLOW],
    [RETURN, 0, 0, SECCOMP_RET_ERRNO | errno],
  ];
  const filter = new DataView(new ArrayBuffer(8 * words.length));
  for (const [i, [code = 0, isTrue = 0, isFalse = 0, operand = 0]] of words.entries()) {
    filter.setUint16(8 * i, code, true);
    filter.setUint8(8 * i + 2, isTrue);
    filter.setUint8(8 * i + 3, isFalse);
    filter.setUint32(8 * i + 4, operand, true);
  }
  const program = new BigUint64Array([BigInt(words.length), BigInt(ptr(new Uint8Array(filter.buffer)))]);
  const { prctl } = dlopen("libc.so.6", {
    prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
  }).symbols;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) !== 0) throw new Error("Cannot give up new privileges");
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ptr(program), 0, 0) !== 0)
    throw new Error("Cannot install the filter");
}
