/**
 * Sites that only a proxy leads out of, with the proxy programs that people run: tinyproxy, squid, SOCKS5, with and without passwords,
 * named by an option or by the environment, over http and https, without DNS.
 *
 * Each case carries a file by WebSocket, and the proxy's own log shows tunnels to the coordinator's port 443 and nothing else.
 */
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type AgentOptions, type MeshAgent, startAgent, startCoordinator, transferFile } from "./mesh.ts";
import { run, runChecked } from "./process.ts";
import { forwardNothing, type SiteProxy, startSocks, startSquid, startTinyproxy } from "./proxy_site.ts";
import type { Lab, Site } from "./topology.ts";

const FILE_BYTES = 1_000_000;
const LOGIN = { user: "alice", password: "opensesame" };
/** Known to the proxy alone. */
const NAME = "coordinator.example";
const ADDRESS = "203.0.113.10";
const NAMES = { [NAME]: ADDRESS };
const BY_ADDRESS = `CONNECT ${ADDRESS}:443`;
const BY_NAME = `CONNECT ${NAME}:443`;

interface Case {
  readonly name: string;
  readonly scheme?: "http" | "https";
  readonly host?: string;
  readonly proxy: (lab: Lab, site: Site) => Promise<SiteProxy>;
  readonly agent: (proxy: SiteProxy) => Pick<AgentOptions, "extra" | "env">;
  readonly requests: readonly string[];
}

const cases: readonly Case[] = [
  {
    name: "tinyproxy with user and password",
    proxy: async (lab, site) => startTinyproxy(lab, site, { login: LOGIN }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.urlWith(LOGIN)] }),
    requests: [BY_ADDRESS],
  },
  {
    name: "squid with user and password",
    proxy: async (lab, site) => startSquid(lab, site, { login: LOGIN }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.urlWith(LOGIN)] }),
    requests: [BY_ADDRESS],
  },
  {
    name: "SOCKS5, names resolved by the proxy",
    host: NAME,
    proxy: async (lab, site) => startSocks(lab, site, { names: NAMES }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.url] }),
    requests: [BY_NAME],
  },
  {
    name: "SOCKS5 with user and password",
    proxy: async (lab, site) => startSocks(lab, site, { login: LOGIN }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.urlWith(LOGIN)] }),
    requests: [BY_ADDRESS],
  },
  {
    name: "tinyproxy, without DNS in the site",
    host: NAME,
    proxy: async (lab, site) => startTinyproxy(lab, site, { names: NAMES }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.url] }),
    requests: [BY_NAME],
  },
  {
    name: "squid, without DNS in the site",
    host: NAME,
    proxy: async (lab, site) => startSquid(lab, site, { names: NAMES }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.url] }),
    requests: [BY_NAME],
  },
  {
    name: "HTTP_PROXY in the environment",
    proxy: async (lab, site) => startTinyproxy(lab, site),
    agent: (proxy) => ({ env: { HTTP_PROXY: proxy.url } }),
    requests: [BY_ADDRESS],
  },
  {
    name: "HTTPS_PROXY in the environment",
    scheme: "https",
    proxy: async (lab, site) => startTinyproxy(lab, site, { login: LOGIN }),
    agent: (proxy) => ({ env: { HTTPS_PROXY: proxy.urlWith(LOGIN) } }),
    requests: [BY_ADDRESS],
  },
  {
    name: "ALL_PROXY in the environment, SOCKS5",
    proxy: async (lab, site) => startSocks(lab, site),
    agent: (proxy) => ({ env: { ALL_PROXY: proxy.url } }),
    requests: [BY_ADDRESS],
  },
  {
    name: "https with a private CA through tinyproxy",
    scheme: "https",
    proxy: async (lab, site) => startTinyproxy(lab, site),
    agent: (proxy) => ({ extra: ["--proxy", proxy.url] }),
    requests: [BY_ADDRESS],
  },
  {
    name: "https with a private CA through squid, by name",
    scheme: "https",
    host: NAME,
    proxy: async (lab, site) => startSquid(lab, site, { login: LOGIN, names: NAMES }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.urlWith(LOGIN)] }),
    requests: [BY_NAME],
  },
  {
    name: "https with a private CA through SOCKS5, by name",
    scheme: "https",
    host: NAME,
    proxy: async (lab, site) => startSocks(lab, site, { names: NAMES }),
    agent: (proxy) => ({ extra: ["--proxy", proxy.url] }),
    requests: [BY_NAME],
  },
];

describe("a site that only its proxy leads out of", () => {
  test.each(cases)("$name: connected by WebSocket, through port 443 alone", async (what) => {
    const { scheme = "http", host = ADDRESS } = what;
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "portrestricted" }] }, async (lab) => {
      const tls = scheme === "https" ? await makeCertificates(lab) : undefined;
      const coordinator = await startCoordinator(lab, {
        listen: ["http://0.0.0.0:8080", `${scheme}://0.0.0.0:443`],
        extra: tls === undefined ? [] : ["--tls-cert", tls.certificate, "--tls-key", tls.key],
      });
      const key = await coordinator.createKey({ reusable: true });
      const [site, far] = [lab.site(1), lab.site(2)];
      await forwardNothing(site);
      const proxy = await what.proxy(lab, site);
      const { extra = [], env = {} } = what.agent(proxy);
      const trusted = tls === undefined ? [] : ["--ca-file", tls.ca];
      const one = await startAgent(lab, site.host, {
        name: "h1",
        url: `${scheme}://${host}:443`,
        key,
        extra: [...extra, ...trusted],
        env,
      });
      const two = await startAgent(lab, far.host, { name: "h2", url: coordinator.url, key, extra: trusted });
      await expectRelayed(one, two);
      const { ssh, websocket, proxy: named } = await one.netcheck();
      expect([ssh, websocket, named]).toEqual([false, true, proxy.url]);
      const { bytes } = await transferFile(one, two, { bytes: FILE_BYTES });
      expect(bytes).toBe(FILE_BYTES);
      await expectRelayed(one, two);
      // Squid writes a tunnel down when it is over.
      expect(await one.stop()).toBe(0);
      await expect.poll(() => [...new Set(proxy.requests)].toSorted(), { timeout: 3000 }).toEqual(what.requests);
    });
  });

  test.each([
    ["tinyproxy", startTinyproxy],
    ["squid", startSquid],
  ] as const)("a wrong password is told with the name of the proxy and what helps: %s", async (_name, start) => {
    await withLab({ sites: [{ nat: "portrestricted" }] }, async (lab) => {
      const site = lab.site(1);
      await forwardNothing(site);
      const proxy = await start(lab, site, { login: LOGIN });
      const wrong = proxy.urlWith({ ...LOGIN, password: "guess-nothing" });
      const said = await problemOf(lab, site, ["--proxy", wrong]);
      const name = proxy.url;
      expect(said).toContain(
        `the proxy ${name} wants a user and password; give them as ${name.replace("://", "://USER:PASSWORD@")}`,
      );
      expect(said).not.toContain("guess-nothing");
    });
  });

  test.each([
    ["tinyproxy", startTinyproxy],
    ["squid", startSquid],
  ] as const)("a port that the proxy refuses is told with the port that helps: %s", async (_name, start) => {
    await withLab({ sites: [{ nat: "portrestricted" }] }, async (lab) => {
      const site = lab.site(1);
      await forwardNothing(site);
      const proxy = await start(lab, site);
      const said = await problemOf(lab, site, ["--proxy", proxy.url], `http://${ADDRESS}:8080`);
      expect(said).toContain(
        `the proxy ${proxy.url} refuses this address or port; proxies often allow port 443 only, so let the coordinator listen there`,
      );
    });
  });

  test("a wrong SOCKS5 password and a proxy that is not there are told with the name of the proxy", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "portrestricted" }] }, async (lab) => {
      const site = lab.site(1);
      await forwardNothing(site);
      const proxy = await startSocks(lab, site, { login: LOGIN });
      const wrong = proxy.urlWith({ ...LOGIN, password: "guess-nothing" });
      expect(await problemOf(lab, site, ["--proxy", wrong])).toContain(proxy.url);
      const nobody = `http://${lab.site(2).lan?.gateway}:3128`;
      expect(await problemOf(lab, lab.site(2), ["--proxy", nobody])).toContain(nobody);
    });
  });
});

test("NO_PROXY keeps the coordinator off the proxy that the environment names", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }] }, async (lab) => {
    const coordinator = await startCoordinator(lab);
    const key = await coordinator.createKey();
    const site = lab.site(1);
    const proxy = await startTinyproxy(lab, site);
    const env = { HTTP_PROXY: proxy.url, ALL_PROXY: proxy.url, NO_PROXY: `other.example,${ADDRESS}` };
    const agent = await startAgent(lab, site.host, { name: "h1", url: coordinator.url, key, env });
    expect((await agent.status()).self.coordinator.connected).toBe(true);
    expect(proxy.requests).toEqual([]);
  });
});

/** Both ends know the worse leg as the kind of the path, and which leg is whose. */
async function expectRelayed(one: MeshAgent, two: MeshAgent): Promise<void> {
  const [near, far] = await Promise.all([
    one.wait(`peer=${two.name}`, 10).then(async () => expect.poll(async () => pathOf(one, two), { timeout: 5000 })),
    two.wait(`peer=${one.name}`, 10).then(async () => expect.poll(async () => pathOf(two, one), { timeout: 5000 })),
  ]);
  await near.toEqual({ kind: "websocket", legs: { local: "websocket", remote: "ssh" } });
  await far.toEqual({ kind: "websocket", legs: { local: "ssh", remote: "websocket" } });
}

async function pathOf(agent: MeshAgent, peer: MeshAgent): Promise<unknown> {
  const { path } = await agent.peer(peer.name);
  return path === null ? null : { kind: path.kind, legs: path.legs };
}

/** Why an agent cannot reach the coordinator, in its own words on stderr. */
async function problemOf(
  lab: Lab,
  site: Site,
  extra: readonly string[],
  url = `http://${ADDRESS}:443`,
): Promise<string> {
  const key = `tmk_${"a".repeat(16)}_${"a".repeat(32)}_${"a".repeat(26)}`;
  const agent = await startAgent(lab, site.host, { name: "h", url, key, extra, waitJoined: false });
  const said = await agent.process.waitFor(
    "a problem",
    ({ text }) => (text.includes("Cannot reach") ? text : undefined),
    10_000,
  );
  await agent.stop();
  return said;
}

/** A CA of our own, and the coordinator's certificate for its address and its name. */
async function makeCertificates(lab: Lab): Promise<{ ca: string; certificate: string; key: string }> {
  const directory = lab.directory("tls");
  const at = (file: string): string => join(directory, file);
  const ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const request = ["openssl", "req", "-x509", ...ec];
  await runChecked([...request, "-subj", "/CN=Lab CA", "-keyout", at("ca.key"), "-out", at("ca.pem")]);
  await runChecked([
    ...request,
    "-subj",
    `/CN=${NAME}`,
    "-addext",
    `subjectAltName=DNS:${NAME},IP:${ADDRESS}`,
    "-addext",
    "basicConstraints=critical,CA:FALSE",
    "-CA",
    at("ca.pem"),
    "-CAkey",
    at("ca.key"),
    "-keyout",
    at("key.pem"),
    "-out",
    at("cert.pem"),
  ]);
  const { code } = await run(["openssl", "verify", "-CAfile", at("ca.pem"), at("cert.pem")]);
  if (code !== 0) throw new Error("The lab's certificate is no good");
  return { ca: at("ca.pem"), certificate: at("cert.pem"), key: at("key.pem") };
}
