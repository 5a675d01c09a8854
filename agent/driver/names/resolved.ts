/**
 * systemd-resolved: tells it that one link has a DNS server of its own, which knows `mesh` and nothing else.
 *
 * These settings belong to the link: they are gone with the TUN device, so that a crash leaves nothing behind. `mesh` is a search domain of
 * the link too, which makes `nas` alone find `nas.mesh`; and the link is no default route for names, so that no other question ever
 * comes here.
 */
import { readFileSync } from "node:fs";
import { MESH_DOMAIN, type Zone } from "../../dns/zone.ts";

/** resolved answers at once, or it hangs. */
const COMMAND_TIMEOUT_MS = 3000;
/** `LINK_SEARCH_DOMAINS_MAX` of systemd is 256, and every member has two reverse names. */
const MAX_REVERSE_DOMAINS = 200;
/** Where resolved answers programs, as /proc/net/udp writes 127.0.0.53:53 (on machines with the low byte first). */
const STUB = " 3500007F:0035 ";

/**
 * Does one serve this network namespace? Asked of the sockets and not of D-Bus, since the bus may be that of another namespace, whose links
 * have other numbers.
 */
export function isResolvedHere(): boolean {
  try {
    return Bun.which("resolvectl") !== null && readFileSync("/proc/self/net/udp", "utf8").includes(STUB);
  } catch {
    return false;
  }
}

export async function installInResolved(device: string, servers: readonly string[], zone: Zone): Promise<void> {
  // Before it has a server: between the two, every name of the machine could be asked there.
  await resolvectl("default-route", device, "no");
  for (const protocol of ["llmnr", "mdns", "dnssec", "dnsovertls"]) await resolvectl(protocol, device, "no");
  await updateResolvedDomains(device, zone);
  await resolvectl("dns", device, ...servers);
}

export async function updateResolvedDomains(device: string, zone: Zone): Promise<void> {
  const reverse = zone.reverseNames.slice(0, MAX_REVERSE_DOMAINS).map((name) => `~${name}`);
  await resolvectl("domain", device, MESH_DOMAIN, ...reverse);
}

export const removeFromResolved = (device: string): Promise<void> => resolvectl("revert", device);

async function resolvectl(...command: readonly string[]): Promise<void> {
  const child = Bun.spawn(["resolvectl", ...command], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    timeout: COMMAND_TIMEOUT_MS,
    env: { PATH: process.env["PATH"] ?? "", LC_ALL: "C" },
  });
  const [text, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  if (code !== 0) throw new Error(`"resolvectl ${command[0] ?? ""}" failed: ${text.trim().split("\n").at(-1) ?? ""}`);
}
