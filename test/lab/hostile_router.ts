/**
 * A program for a router of the lab that answers port mapping in bad faith: damaged and unasked PCP and NAT-PMP, descriptions on another
 * machine, HTTP without end.
 *
 * Arguments: its LAN address, and what its web server does (endless, bomb, redirect). Prints "ready", and "fetched" per request.
 */
import { randomBytes, randomInt } from "node:crypto";
import { createSocket } from "node:dgram";
import { createServer } from "node:net";

const [, , address = "", mode = ""] = process.argv;
/** Where nothing listens and nobody should ever be sent. */
const THIRD_PARTY = "203.0.113.10:9";
const WEB_PORT = 9999;
const SEARCHED = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";

const mapping = createSocket("udp4");
mapping.on("message", (request, { port, address: client }) => {
  for (let i = 0; i < 20; i++) {
    const start = Buffer.from([request[0] ?? 0, 0x80 | (request[1] ?? 0)]);
    mapping.send(Buffer.concat([start, randomBytes(randomInt(80))]), port, client);
  }
  mapping.send(new Uint8Array(60_000), port, client);
});

const ssdp = createSocket("udp4");
ssdp.on("message", (_, { port, address: client }) => {
  for (const location of [
    `http://${THIRD_PARTY}/`,
    `http://${address}@${THIRD_PARTY}/`,
    `http://${address}:${WEB_PORT}/${"x".repeat(2000)}`,
    `http://${address}:${WEB_PORT}/description.xml`,
  ]) {
    ssdp.send(`HTTP/1.1 200 OK\r\nST: ${SEARCHED}\r\nLOCATION: ${location}\r\n\r\n`, port, client);
  }
});

const entities = Array.from({ length: 9 }, (_, i) => `<!ENTITY a${i + 1} "${`&a${i};`.repeat(10)}">`).join("");
const BODY: Readonly<Record<string, string>> = {
  bomb: `HTTP/1.1 200 OK\r\n\r\n<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a0 "x">${entities}]><r>&a9;</r>`,
  redirect: `HTTP/1.1 302 Found\r\nLocation: http://${THIRD_PARTY}/\r\nContent-Length: 0\r\n\r\n`,
  endless: "HTTP/1.1 200 OK\r\n\r\n",
};
const web = createServer((client) => {
  client.on("error", () => client.destroy());
  client.once("data", () => {
    console.log("fetched");
    client.write(BODY[mode] ?? "");
    if (mode !== "endless") client.end();
    else {
      const timer = setInterval(() => client.write("<a>".repeat(2000)), 1);
      client.on("close", () => clearInterval(timer));
    }
  });
});

mapping.bind(5351, address, () =>
  ssdp.bind(1900, address, () => web.listen(WEB_PORT, address, () => console.log("ready"))),
);
