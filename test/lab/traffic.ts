/**
 * Measures a path between two namespaces, without the product.
 *
 * Usage: `bun traffic.ts serve ADDRESS PORT` answers UDP datagrams and swallows TCP streams, telling at the end of each how many bytes
 * came; `bun traffic.ts rtt ADDRESS PORT COUNT` prints the round trips in milliseconds as a JSON array, null for a lost one;
 * `bun traffic.ts send ADDRESS PORT BYTES` prints the milliseconds until the other side has confirmed them all.
 * `bun traffic.ts http-serve ADDRESS PORT BYTES [BYTES_PER_SECOND]` serves a random file after printing its SHA-256, at that rate if one
 * is given; `bun traffic.ts http-get ADDRESS PORT` fetches it and prints `{ "sha256", "bytes", "milliseconds" }`.
 * `bun traffic.ts greet ADDRESS PORT` sends one byte on every TCP connection and keeps it open; `bun traffic.ts first-byte ADDRESS PORT COUNT`
 * prints the milliseconds from connecting to that byte as a JSON array; `bun traffic.ts hold ADDRESS PORT COUNT` opens so many
 * connections, prints `ready` once each has had its byte, and keeps them.
 */
import { createHash, randomBytes } from "node:crypto";
import { createSocket } from "node:dgram";
import { createConnection, createServer, type Socket } from "node:net";

const LOST_MS = 1_000;
const CHUNK = Buffer.alloc(65_536, 0x5a);
/** A file served at a rate goes out in as many pieces a second. */
const PIECES_PER_SECOND = 50;

const [mode, address = "", portText, amountText, rateText] = process.argv.slice(2);
const port = Number(portText);
const amount = Number(amountText);

switch (mode) {
  case "serve":
    serve();
    break;
  case "rtt":
    console.log(JSON.stringify(await roundTrips(amount)));
    process.exit(0);
    break;
  case "send":
    console.log(await send(amount));
    process.exit(0);
    break;
  case "http-serve":
    httpServe();
    break;
  case "http-get":
    console.log(JSON.stringify(await httpGet()));
    process.exit(0);
    break;
  case "greet":
    createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.write("!");
    }).listen({ port, host: address, backlog: 1024 }, () => console.log("ready"));
    break;
  case "first-byte":
    console.log(JSON.stringify(await firstBytes(amount)));
    process.exit(0);
    break;
  case "hold":
    await Promise.all(Array.from({ length: amount }, () => greeted()));
    console.log("ready");
    break;
  default:
    console.error(
      "Usage: bun traffic.ts serve|rtt|send|http-serve|http-get|greet|first-byte|hold ADDRESS PORT [COUNT|BYTES]",
    );
    process.exit(2);
}

function serve(): void {
  const udp = createSocket(address.includes(":") ? "udp6" : "udp4");
  udp.on("message", (bytes, from) => udp.send(bytes, from.port, from.address));
  udp.bind(port, address, () =>
    createServer({ allowHalfOpen: true }, (socket) => {
      let received = 0;
      socket.on("data", (chunk) => {
        received += chunk.length;
      });
      socket.on("end", () => socket.end(`${received}\n`));
      socket.on("error", () => socket.destroy());
    }).listen(port, address, () => console.log("ready")),
  );
}

/** One datagram at a time, so that each meets an empty path. */
async function roundTrips(count: number): Promise<(number | null)[]> {
  const udp = createSocket(address.includes(":") ? "udp6" : "udp4");
  const results: (number | null)[] = [];
  for (let index = 0; index < count; index += 1) {
    const text = `${index}`;
    results.push(
      await new Promise<number | null>((resolve) => {
        const timer = setTimeout(() => {
          udp.removeAllListeners("message");
          resolve(null);
        }, LOST_MS);
        const sentAt = performance.now();
        udp.on("message", (bytes) => {
          if (bytes.toString() !== text) return;
          clearTimeout(timer);
          udp.removeAllListeners("message");
          resolve(performance.now() - sentAt);
        });
        udp.send(text, port, address);
      }),
    );
  }
  return results;
}

async function send(bytes: number): Promise<number> {
  return new Promise<number>((resolve, reject) => {
    const startedAt = performance.now();
    const socket = createConnection({ host: address, port }, () => {
      let left = bytes;
      const fill = (): void => {
        while (left > 0) {
          const chunk = CHUNK.subarray(0, Math.min(left, CHUNK.length));
          left -= chunk.length;
          if (!socket.write(chunk)) {
            socket.once("drain", fill);
            return;
          }
        }
        socket.end();
      };
      fill();
    });
    socket.on("error", reject);
    socket.on("data", (reply) => {
      if (Number(reply.toString()) === bytes) resolve(performance.now() - startedAt);
      else reject(new Error(`Only ${reply.toString().trim()} of ${bytes} bytes arrived`));
    });
  });
}

async function firstBytes(count: number): Promise<number[]> {
  const times: number[] = [];
  for (let index = 0; index < count; index += 1) {
    const startedAt = performance.now();
    const socket = await greeted();
    times.push(performance.now() - startedAt);
    socket.destroy();
  }
  return times;
}

async function greeted(): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const socket = createConnection({ host: address, port });
  socket.once("data", () => resolve(socket));
  socket.on("error", reject);
  return promise;
}

function httpServe(): void {
  const file = randomBytes(amount);
  const rate = Number(rateText ?? 0);
  const respond = (): Response => new Response(rate > 0 ? new ReadableStream(paced(file, rate)) : file);
  Bun.serve({ hostname: address, port, idleTimeout: 60, fetch: respond });
  console.log(createHash("sha256").update(file).digest("hex"));
}

function paced(file: Buffer, bytesPerSecond: number): UnderlyingDefaultSource<Uint8Array> {
  const piece = Math.ceil(bytesPerSecond / PIECES_PER_SECOND);
  let at = 0;
  return {
    async pull(controller) {
      await new Promise((resolve) => setTimeout(resolve, 1000 / PIECES_PER_SECOND));
      controller.enqueue(new Uint8Array(file.subarray(at, at + piece)));
      at += piece;
      if (at >= file.length) controller.close();
    },
  };
}

async function httpGet(): Promise<{ sha256: string; bytes: number; milliseconds: number }> {
  const startedAt = performance.now();
  const host = address.includes(":") ? `[${address}]` : address;
  const body = new Uint8Array(await (await fetch(`http://${host}:${port}/`)).arrayBuffer());
  const milliseconds = performance.now() - startedAt;
  return { sha256: createHash("sha256").update(body).digest("hex"), bytes: body.length, milliseconds };
}
