/**
 * A classic STUN server (RFC 3489) for the lab's own tests, so that they judge the NATs without trusting the product.
 *
 * Usage: `bun stun_server.ts ADDRESS [ADDRESS]`, ports 3478 and 3479 on each. Understands Binding requests with CHANGE-REQUEST, which
 * is what Debian's `stun` client asks, and answers with MAPPED-ADDRESS, SOURCE-ADDRESS and CHANGED-ADDRESS. Requests on one socket are
 * answered in the order they came. Prints `ready` once every socket is bound.
 */
import { createSocket, type RemoteInfo } from "node:dgram";
import { once } from "node:events";
import { ipBytes } from "../../shared/address.ts";

const PORTS = [3478, 3479] as const;
// RFC 3489 §11: message and attribute types.
const BINDING_REQUEST = 0x0001;
const BINDING_RESPONSE = 0x0101;
const MAPPED_ADDRESS = 0x0001;
const CHANGE_REQUEST = 0x0003;
const SOURCE_ADDRESS = 0x0004;
const CHANGED_ADDRESS = 0x0005;
const CHANGE_ADDRESS_BIT = 4;
const CHANGE_PORT_BIT = 2;

const addresses = process.argv.slice(2);
const sockets = addresses.map((address) =>
  PORTS.map((port) => {
    const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
    socket.bind(port, address);
    return socket;
  }),
);
await Promise.all(sockets.flat().map(async (socket) => once(socket, "listening")));

for (const [addressIndex, row] of sockets.entries()) {
  for (const [portIndex, socket] of row.entries()) {
    socket.on("message", (request, from) => answer(request, from, addressIndex, portIndex));
  }
}
process.stdout.write("ready\n");

function answer(request: Buffer, from: RemoteInfo, addressIndex: number, portIndex: number): void {
  if (request.length < 20 || request.readUInt16BE(0) !== BINDING_REQUEST) return;
  const change = changeRequest(request);
  const otherAddress = (addressIndex + 1) % addresses.length;
  const otherPort = (portIndex + 1) % PORTS.length;
  const sourceAddress = (change & CHANGE_ADDRESS_BIT) === 0 ? addressIndex : otherAddress;
  const sourcePort = (change & CHANGE_PORT_BIT) === 0 ? portIndex : otherPort;
  const attributes = Buffer.concat([
    addressAttribute(MAPPED_ADDRESS, from.address, from.port),
    addressAttribute(SOURCE_ADDRESS, addresses[sourceAddress] ?? "", PORTS[sourcePort] ?? 0),
    addressAttribute(CHANGED_ADDRESS, addresses[otherAddress] ?? "", PORTS[otherPort] ?? 0),
  ]);
  const header = Buffer.alloc(4);
  header.writeUInt16BE(BINDING_RESPONSE, 0);
  header.writeUInt16BE(attributes.length, 2);
  const response = Buffer.concat([header, request.subarray(4, 20), attributes]);
  sockets[sourceAddress]?.[sourcePort]?.send(response, from.port, from.address);
}

/** The flags of CHANGE-REQUEST, 0 when the request has none. */
function changeRequest(request: Buffer): number {
  for (let offset = 20; offset + 4 <= request.length; offset += 4 + request.readUInt16BE(offset + 2)) {
    if (request.readUInt16BE(offset) === CHANGE_REQUEST && offset + 8 <= request.length) {
      return request.readUInt32BE(offset + 4);
    }
  }
  return 0;
}

/** type, length, 0, family (1 is IPv4, 2 is IPv6), port, address. */
function addressAttribute(type: number, ip: string, port: number): Buffer {
  const bytes = ip.includes(":") ? ipBytes(ip) : ipBytes(ip).subarray(12);
  const attribute = Buffer.alloc(8 + bytes.length);
  attribute.writeUInt16BE(type, 0);
  attribute.writeUInt16BE(4 + bytes.length, 2);
  attribute.writeUInt8(bytes.length === 4 ? 1 : 2, 5);
  attribute.writeUInt16BE(port, 6);
  attribute.set(bytes, 8);
  return attribute;
}
