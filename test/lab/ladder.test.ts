/**
 * The whole ladder: each unordered pair of sites ends on the rung that physics and its firewalls allow, asserted by rung and by leg,
 * and carries a file over it.
 *
 * The HTTP-proxy-only site is a LAN whose router forwards nothing; a real tinyproxy on it allows CONNECT to port 443.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type MeshAgent, startAgent, startCoordinator, transferFile } from "./mesh.ts";
import { closeAllButProxy } from "./proxy_site.ts";
import type { Lab, SiteNat } from "./topology.ts";

type SiteKind = SiteNat | "httpproxy";
const KINDS: readonly SiteKind[] = [
  "open",
  "fullcone",
  "restricted",
  "portrestricted",
  "symmetric",
  "udpblocked",
  "tcp443only",
  "httpproxy",
];
const WEB_ONLY: readonly SiteKind[] = ["tcp443only", "httpproxy"];
const NO_UDP: readonly SiteKind[] = ["udpblocked", ...WEB_ONLY];
const FILE_BYTES = 1_000_000;

const pairs = KINDS.flatMap((a, i) => KINDS.slice(i).map((b): [SiteKind, SiteKind] => [a, b]));

test.each(pairs)("%s x %s is connected by the best rung there is", async (a, b) => {
  await withLab({ sites: [{ nat: natOf(a) }, { nat: natOf(b) }] }, async (lab) => {
    const coordinator = await startCoordinator(lab, { listen: ["http://0.0.0.0:8080", "http://0.0.0.0:443"] });
    const key = await coordinator.createKey({ reusable: true });
    const one = await join_(lab, 1, a, coordinator, key);
    const two = await join_(lab, 2, b, coordinator, key);
    const rung = expectedRung(a, b);
    await waitForRung(one, two.name, rung);
    await waitForRung(two, one.name, rung);
    const file = await transferFile(one, two, { bytes: FILE_BYTES });
    expect(file.bytes).toBe(FILE_BYTES);
    const [here, there] = [await one.peer(two.name), await two.peer(one.name)];
    expect([here?.path?.kind, there?.path?.kind]).toEqual([rung, rung]);
    const legs = rung === "direct" ? null : { local: legOf(a), remote: legOf(b) };
    expect(here?.path?.legs).toEqual(legs);
    expect(there?.path?.legs).toEqual(legs === null ? null : { local: legs.remote, remote: legs.local });
    if (rung !== "direct") expect(here?.why).toMatch(/^Relayed through the coordinator by (SSH|WebSocket)/);
    if (rung === "websocket") {
      const whose = [a, b].map((kind) => legOf(kind) === "websocket");
      const ours =
        /No SSH: (this machine does not reach TCP port 2222|the SSH connection of this machine is being opened)/;
      const says = [ours, new RegExp(`"${two.name}" has no SSH connection`)];
      expect(says.map((words) => words.test(here?.why ?? ""))).toEqual(whose);
      // Where packets to the port are dropped, an attempt takes two and a half seconds.
      if (a === b) await one.waitWhy(two.name, /this machine does not reach TCP port 2222 of the coordinator/);
    }
  });
});

function natOf(kind: SiteKind): SiteNat {
  return kind === "httpproxy" ? "portrestricted" : kind;
}

const legOf = (kind: SiteKind): "ssh" | "websocket" => (WEB_ONLY.includes(kind) ? "websocket" : "ssh");

function expectedRung(a: SiteKind, b: SiteKind): "direct" | "ssh" | "websocket" {
  const isBlocked = NO_UDP.includes(a) || NO_UDP.includes(b);
  // Ports of two routers that both choose them at random cannot be guessed; of one they can.
  if (!isBlocked && !(a === "symmetric" && b === "symmetric")) return "direct";
  return legOf(a) === "ssh" && legOf(b) === "ssh" ? "ssh" : "websocket";
}

async function join_(
  lab: Lab,
  index: number,
  kind: SiteKind,
  coordinator: { readonly url: string },
  key: string,
): Promise<MeshAgent> {
  const site = lab.site(index);
  const url = WEB_ONLY.includes(kind) ? coordinator.url.replace(/:\d+$/, ":443") : coordinator.url;
  const proxy = kind === "httpproxy" ? await closeAllButProxy(lab, site) : undefined;
  const extra = proxy === undefined ? [] : ["--proxy", proxy.url];
  return startAgent(lab, site.host, { name: `h${index}`, url, key, extra });
}

async function waitForRung(agent: MeshAgent, peer: string, rung: string): Promise<void> {
  if (rung === "direct") {
    await agent.waitDirect(peer, 10);
    return;
  }
  expect(await agent.wait(`peer=${peer}`, 10)).toBe(0);
  // The better of two relays may come a moment after the other.
  const deadline = performance.now() + 5000;
  while ((await agent.peer(peer))?.path?.kind !== rung && performance.now() < deadline);
}
