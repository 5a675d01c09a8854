/**
 * The DNS server of the world outside, for tests of names: `*.example` is 192.0.2.80, nothing else exists, and every name that it is asked
 * for is printed. Usage: bun dns_upstream.ts IP
 */
import { createSocket } from "node:dgram";
import { type Answer, decode, encode } from "dns-packet";

const NO_SUCH_NAME = 3;
const RECURSION_AVAILABLE = 0x0080;

const [ip = "127.0.0.2"] = process.argv.slice(2);
const socket = createSocket("udp4");
socket.on("message", (bytes, from) => {
  const query = decode(bytes);
  const [question] = query.questions ?? [];
  if (question === undefined) return;
  const name = question.name.toLowerCase();
  console.log(`asked ${name}`);
  const isKnown = name.endsWith(".example");
  const answers: Answer[] =
    isKnown && question.type === "A" ? [{ type: "A", name: question.name, ttl: 1, data: "192.0.2.80" }] : [];
  const flags = RECURSION_AVAILABLE | (isKnown ? 0 : NO_SUCH_NAME);
  socket.send(
    encode({ type: "response", id: query.id ?? 0, flags, questions: [question], answers }),
    from.port,
    from.address,
  );
});
socket.bind(53, ip, () => console.log("ready"));
