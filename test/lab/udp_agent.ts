/**
 * The half of udp_probe.ts that runs inside a namespace: opens UDP sockets and sends and receives datagrams as told on standard input,
 * one JSON object a line, and reports each result on standard output. Decides nothing. Ends with its input.
 */
import { createSocket, type Socket } from "node:dgram";
import { createInterface } from "node:readline";

type Command =
  | { op: "bind"; socket: number; address: string; port: number }
  | { op: "send"; socket: number; address: string; port: number; hex: string }
  | { op: "close"; socket: number };

const sockets = new Map<number, Socket>();
const report = (value: object): boolean => process.stdout.write(`${JSON.stringify(value)}\n`);

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line) as Command;
  switch (command.op) {
    case "bind": {
      const socket = createSocket(command.address.includes(":") ? "udp6" : "udp4");
      sockets.set(command.socket, socket);
      socket.on("error", (error) => report({ event: "error", socket: command.socket, message: error.message }));
      socket.on("message", (bytes, from) =>
        report({
          event: "datagram",
          socket: command.socket,
          address: from.address,
          port: from.port,
          hex: bytes.toString("hex"),
        }),
      );
      socket.bind(command.port, command.address, () =>
        report({ event: "bound", socket: command.socket, port: socket.address().port }),
      );
      break;
    }
    case "send":
      // A refused or unreachable destination is what some tests are about: it shows as no answer.
      sockets
        .get(command.socket)
        ?.send(Buffer.from(command.hex, "hex"), command.port, command.address, () => undefined);
      break;
    case "close":
      sockets.get(command.socket)?.close();
      sockets.delete(command.socket);
      break;
    default:
      throw new Error(`Unknown command: ${line}`);
  }
}
process.exit(0);
