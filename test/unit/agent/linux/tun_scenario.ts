/** Runs inside a network namespace of its own (tun.test.ts) and prints what it saw as one line of JSON. */
import { DataWorkerHost } from "../../../../agent/driver/data_worker_host.ts";
import type { Report } from "../../../../agent/driver/engine.ts";
import { listInterfaceAddresses, sourceAddressFor } from "../../../../agent/driver/linux/interfaces.ts";
import { AF_INET, AF_INET6, libc, MSG_DONTWAIT, SOCK_NONBLOCK, SOCK_RAW } from "../../../../agent/driver/linux/libc.ts";
import { Netlink } from "../../../../agent/driver/linux/netlink.ts";
import { PollSet } from "../../../../agent/driver/linux/poll_set.ts";
import { encodeSockaddr, SOCKADDR_BYTES } from "../../../../agent/driver/linux/sockaddr.ts";
import { isIPv6, packAddress } from "../../../../shared/address.ts";
import { coverageOf } from "../../../../agent/driver/linux/routing.ts";

const RTN_LOCAL = 2;
const reports: Report[] = [];
let arrived = Promise.withResolvers<void>();
const host = await DataWorkerHost.start({
  engine: "linux",
  workerUrl: new URL("./ping_worker.ts", import.meta.url),
  onReport: (report) => {
    reports.push(report);
    arrived.resolve();
  },
});
async function next<T extends Report["type"]>(type: T): Promise<Extract<Report, { type: T }>> {
  for (;;) {
    const at = reports.findIndex((report) => report.type === type);
    if (at >= 0) return reports.splice(at, 1)[0] as Extract<Report, { type: T }>;
    arrived = Promise.withResolvers<void>();
    await arrived.promise;
  }
}
async function shell(command: string): Promise<{ code: number; text: string }> {
  const child = Bun.spawn(["sh", "-c", command], { stdout: "pipe", stderr: "inherit" });
  const text = await new Response(child.stdout).text();
  return { code: await child.exited, text };
}

/** Sends ICMP echo requests, one after the other, on a raw socket. Returns how many were answered with the same payload. */
function ping(ip: string, count: number, payloadBytes: number): number {
  const is6 = isIPv6(ip);
  const c = libc();
  const fd = c.socket(is6 ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_NONBLOCK, is6 ? 58 : 1);
  const poll = new PollSet<undefined>(fd, undefined);
  const address = new Uint8Array(SOCKADDR_BYTES);
  const length = encodeSockaddr(packAddress({ ip, port: 0 }), is6 ? 6 : 4, address);
  const buffer = new Uint8Array(2048);
  let answered = 0;
  for (let sequence = 0; sequence < count; sequence++) {
    const request = new Uint8Array(8 + payloadBytes).fill(sequence + 1, 8);
    request[0] = is6 ? 128 : 8;
    request[7] = sequence;
    // Raw ICMPv6 sockets fill the checksum in themselves.
    if (!is6) request.set(internetChecksum(request), 2);
    c.sendto(fd, request, request.length, 0, address, length);
    const giveUpAt = performance.now() + 2000;
    for (let done = false; !done && performance.now() < giveUpAt; ) {
      poll.wait(100);
      const received = c.recvfrom(fd, buffer, buffer.length, MSG_DONTWAIT, null, null);
      // Raw IPv4 sockets show the IP header, raw ICMPv6 ones do not.
      const reply = buffer.subarray(is6 ? 0 : 20, Math.max(received, 0));
      done = reply[0] === (is6 ? 129 : 0) && Buffer.compare(reply.subarray(4), request.subarray(4)) === 0;
      const checks = is6 || internetChecksum(reply).every((byte) => byte === 0);
      if (done && checks) answered++;
    }
  }
  c.close(fd);
  return answered;
}
function internetChecksum(bytes: Uint8Array): Uint8Array {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] ?? 0) * 256 + (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return Uint8Array.of((~sum >> 8) & 0xff, ~sum & 0xff);
}

host.send({ type: "open_tun" });
const { name } = await next("tun_opened");
const netlink = new Netlink();
const index = netlink.linkIndex(name);
netlink.linkUp(index, 1280);
netlink.addAddress(index, "100.96.0.1");
netlink.addAddress(index, "fd00:7::1");
const added = [
  netlink.addHostRoute(index, "100.96.0.2"),
  netlink.addHostRoute(index, "fd00:7::2"),
  netlink.addHostRoute(index, "fd00:7::2"),
];

while (!netlink.routes().some((route) => route.type === RTN_LOCAL && route.destination === "fd00:7::1")) {
  // The kernel's work queue gets round to it (Netlink.addAddress).
  await Bun.sleep(1);
}
const answers = [ping("100.96.0.2", 20, 56), ping("fd00:7::2", 20, 56), ping("100.96.0.2", 3, 1252)];
host.send({ type: "read_counters" });
const { drops } = await next("counters");

// A second device takes the next number; a name that is in use is refused with words.
host.send({ type: "open_udp", leg: 1, family: 4, port: 0 });
await next("udp_opened");
const second = await DataWorkerHost.start({
  engine: "linux",
  workerUrl: new URL("./ping_worker.ts", import.meta.url),
  onReport: host.onReport,
});
second.send({ type: "open_tun", name });
const inUse = await next("tun_failed");
second.send({ type: "open_tun" });
const { name: secondName } = await next("tun_opened");
await second.stop();
await next("stopped");

// Changes of another interface are news, those of our own device are not.
host.send({ type: "watch_network" });
host.send({ type: "open_udp", leg: 2, family: 4, port: 0 });
await next("udp_opened");
netlink.addHostRoute(index, "100.96.0.3");
host.send({ type: "open_udp", leg: 3, family: 4, port: 0 });
await next("udp_opened");
const ownChanges = reports.filter((report) => report.type === "network_changed").length;
await shell("ip link add bridge0 type bridge && ip addr add 192.0.2.1/24 dev bridge0 && ip link set bridge0 up");
await next("network_changed");
await shell("ip tuntap add tap0 mode tap && ip addr add 198.51.100.1/24 dev tap0");

const snapshot = netlink.snapshot();
const result = {
  name,
  secondName,
  added,
  answers,
  answered: drops["answered"],
  inUse: inUse.message,
  ownChanges,
  source4: sourceAddressFor("100.96.0.2"),
  source6: sourceAddressFor("fd00:7::2"),
  covered: coverageOf(snapshot, "192.0.2.77", index),
  free: coverageOf(snapshot, "100.96.0.2", index) === undefined,
  bridges: listInterfaceAddresses()
    .filter((address) => address.isBridge)
    .map((address) => address.name),
  tunAddresses: listInterfaceAddresses()
    .filter((address) => address.isTun && address.isUp)
    .map((address) => `${address.ip}/${address.prefix}`),
  taps: listInterfaceAddresses()
    .filter(({ name: other }) => other === "tap0")
    .map(({ ip, isTun }) => ({ ip, isTun })),
  lostWhenDeleted: "",
  leftBehind: "",
};
netlink.deleteHostRoute(index, "100.96.0.3");
netlink.deleteHostRoute(index, "100.96.0.3");

await shell(`ip link delete tap0 && ip link delete ${name}`);
const lost = await next("tun_failed");
result.lostWhenDeleted = lost.code;
host.send({ type: "open_tun" });
await next("tun_opened");
await host.stop();
result.leftBehind = (await shell("ip -o link show type tun; ip route show 100.96.0.0/12")).text;
netlink.close();
console.log(JSON.stringify(result));
