/** Asks one DNS server for an A record, over UDP or TCP, and prints what it said. Usage: bun dns_probe.ts udp|tcp SERVER NAME */
import { createSocket } from "node:dgram";
import { connect } from "node:net";
import { decode, type Packet, encode, streamDecode, streamEncode } from "dns-packet";

const PATIENCE_MS = 700;

const [transport, server = "", name = ""] = process.argv.slice(2);
const query = { type: "query" as const, id: 1, questions: [{ type: "A" as const, name }] };

function tell(packet: Packet): never {
  // Its types leave the code out.
  const { rcode } = packet as Packet & { readonly rcode: string };
  console.log([rcode, ...(packet.answers ?? []).map((answer) => (answer.type === "A" ? answer.data : ""))].join(" "));
  process.exit(0);
}

setTimeout(() => {
  console.log("no answer");
  process.exit(0);
}, PATIENCE_MS);
if (transport === "udp") {
  const socket = createSocket("udp4");
  socket.on("message", (bytes) => tell(decode(bytes)));
  socket.on("error", () => {});
  socket.send(encode(query), 53, server);
} else {
  const socket = connect(53, server, () => socket.write(streamEncode(query)));
  socket.on("error", () => {});
  socket.on("data", (bytes) => tell(streamDecode(bytes)));
}
