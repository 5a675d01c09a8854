/**
 * Numbered datagrams that leave the program many at a time (UDP_SEGMENT), as QUIC does it: the kernel hands them to a TUN device as one
 * super-packet. Runs inside a host of the lab, under Bun:
 *
 *   udp_batches.ts receive PORT                prints how many came, and how many of them were wrong, when its input is closed
 *   udp_batches.ts send ADDRESS PORT BATCHES   batches of 40 datagrams of 1000 bytes, the last of each shorter, 5 ms apart
 *
 * Every byte of a datagram follows from its number.
 */
import { createSocket } from "node:dgram";
import { OFFLOADS, type Offload } from "../../agent/driver/linux/offloads.ts";
import { UdpSocket } from "../../agent/driver/linux/udp.ts";
import { packAddress } from "../../shared/address.ts";

const PER_BATCH = 40;
const BYTES = 1000;
const LAST_BYTES = 333;
const BATCH_MS = 5;

const [mode, ...rest] = process.argv.slice(2);
if (mode === "receive") receive(Number(rest[0]));
else if (mode === "send") await send(rest[0] ?? "", Number(rest[1]), Number(rest[2]));

function fill(bytes: Uint8Array, number: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = (number * 31 + i * 7) & 255;
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(0, number);
}

function receive(port: number): void {
  const seen = new Set<number>();
  let wrong = 0;
  const expected = new Uint8Array(BYTES);
  const socket = createSocket({ type: "udp4", recvBufferSize: 4 * 1024 * 1024 });
  socket.on("message", (message) => {
    const number = message.readUInt32BE(0);
    const length = number % PER_BATCH === PER_BATCH - 1 ? LAST_BYTES : BYTES;
    fill(expected.subarray(0, length), number);
    if (seen.has(number) || !message.equals(expected.subarray(0, length))) wrong++;
    seen.add(number);
  });
  socket.bind(port, () => console.log("ready"));
  process.stdin.on("end", () => {
    console.log(JSON.stringify({ received: seen.size, wrong }));
    process.exit(0);
  });
  process.stdin.resume();
}

async function send(address: string, port: number, batches: number): Promise<void> {
  const socket = UdpSocket.open({ family: 4, port: 0, offloads: new Set(Object.keys(OFFLOADS) as Offload[]) });
  const to = packAddress({ ip: address, port });
  const bytes = new Uint8Array((PER_BATCH - 1) * BYTES + LAST_BYTES);
  let failed = 0;
  for (let batch = 0; batch < batches; batch++) {
    for (let i = 0; i < PER_BATCH; i++) {
      const at = i * BYTES;
      fill(bytes.subarray(at, Math.min(at + BYTES, bytes.length)), batch * PER_BATCH + i);
    }
    if (socket.send(to, bytes, BYTES) !== 0) failed++;
    await Bun.sleep(BATCH_MS);
  }
  socket.close();
  console.log(JSON.stringify({ sent: batches * PER_BATCH, failed }));
}
