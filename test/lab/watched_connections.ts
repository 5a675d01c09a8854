/**
 * Two TCP connections, one with bytes always under way and one on which nobody says anything, that tell how they end.
 *
 * Usage: `bun watched_connections.ts serve PORT` or `connect PORT`, both on 127.0.0.1. Each prints `busy open`, `idle open` and later
 * `busy over HOW`, where HOW is the error of the system, or `end` for an orderly one, and ends when both are over.
 */
import { createConnection, createServer, type Socket } from "node:net";

/** Sent by the server on the busy one, this often: more than a slow path is done with before the next. */
const PIECE = Buffer.alloc(100_000, 0x5a);
const EVERY_MS = 50;

const [mode, portText] = process.argv.slice(2);
const port = Number(portText);
let left = 2;

if (mode === "serve") {
  createServer((socket) => {
    // The first byte says which of the two it is.
    socket.once("data", (first) => {
      const isBusy = first[0] === 0x62;
      watch(socket, isBusy ? "busy" : "idle");
      socket.write(first);
      if (!isBusy) return;
      const timer = setInterval(() => {
        if (!socket.writableNeedDrain) socket.write(PIECE);
      }, EVERY_MS);
      socket.on("close", () => clearInterval(timer));
    });
  }).listen(port, "127.0.0.1", () => console.log("ready"));
} else {
  for (const kind of ["busy", "idle"]) {
    const socket = createConnection({ host: "127.0.0.1", port }, () => socket.write(kind.slice(0, 1)));
    socket.once("data", () => watch(socket, kind));
  }
}

function watch(socket: Socket, kind: string): void {
  console.log(`${kind} open`);
  let how = "end";
  socket.on("data", () => {});
  socket.on("error", (error) => {
    how = "code" in error ? String(error.code) : error.message;
  });
  socket.on("close", () => {
    console.log(`${kind} over ${how}`);
    left -= 1;
    if (left === 0) process.exit(0);
  });
}
