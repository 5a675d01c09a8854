/**
 * `npm run demo`: the main job in a few seconds. A coordinator, two machines behind two NATs, a direct path between them, a file over it.
 *
 * As root on Linux the NATs are real ones of the kernel, in network namespaces of their own (test/lab); elsewhere everything runs on
 * loopback. Whatever is made goes away again, also on Ctrl-C.
 *
 * Usage: npm run demo [-- --loopback | --help]
 */
import { Stage } from "../test/e2e/programs.ts";
import { type AgentStatus, startAgent, startCoordinator, transferFile } from "../test/lab/mesh.ts";
import { createLab, type Lab } from "../test/lab/topology.ts";
import { missingForLab } from "./lab_requirements.ts";
import { root, toolEnv } from "./run.ts";

const USAGE = `Usage: npm run demo [-- --loopback]

Builds the agent, starts a coordinator and two agents behind two NATs, waits for their direct path and sends
a file over it. As root on Linux with real NATs in network namespaces, elsewhere on loopback.
Leaves nothing behind.

  --loopback  without network namespaces, also where they are possible
  --help      this text`;

const FILE_BYTES = 50_000_000;
const PINGS = 5;
const DIRECT_TIMEOUT_SECONDS = 10;

const arguments_ = process.argv.slice(2);
if (arguments_.includes("--help") || arguments_.includes("-h")) {
  console.log(USAGE);
  process.exit(0);
}
const unknown = arguments_.find((argument) => argument !== "--loopback");
if (unknown !== undefined) {
  console.error(`Unknown option ${unknown}\n\n${USAGE}`);
  process.exit(2);
}

/** Runs a command of an agent and returns what it printed. */
type Cli = (...command: string[]) => Promise<string>;

const startedAt = performance.now();
let cleanUp: () => Promise<void> = async () => undefined;
let isEnding = false;
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
] as const) {
  process.on(signal, () => {
    // npm passes Ctrl-C on as well: the second one must not cut the cleaning short.
    if (isEnding) return;
    isEnding = true;
    void cleanUp().finally(() => process.exit(128 + number));
  });
}

try {
  await buildAgent();
  const obstacle = arguments_.includes("--loopback") ? "--loopback was asked for" : missingForLab();
  if (obstacle === undefined) await inTheLab();
  else await onLoopback(obstacle);
  if (!isEnding) {
    isEnding = true;
    await cleanUp();
    tell("done", "everything has been stopped and removed again");
  }
} catch (error) {
  // After Ctrl-C everything fails that was under way.
  if (!isEnding) {
    isEnding = true;
    await cleanUp();
    console.error(shortened(error instanceof Error ? error.message : String(error)));
    process.exit(1);
  }
}

/** What failed, and the end of what the programs said; a log of hundreds of lines explains nothing to anybody. */
function shortened(message: string): string {
  const lines = message.split("\n");
  return lines.length <= 12 ? message : [lines[0], "...", ...lines.slice(-10)].join("\n");
}

/** One line of the story, with the seconds since the demo began. */
function tell(who: string, what: string): void {
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  console.log(`${seconds.padStart(5)} s  ${who.padEnd(11)}  ${what}`);
}

async function buildAgent(): Promise<void> {
  const build = Bun.spawn(["bun", "scripts/build.ts", "--agent"], {
    cwd: root,
    env: toolEnv(),
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const output = Promise.all([new Response(build.stdout).text(), new Response(build.stderr).text()]);
  if ((await build.exited) !== 0) throw new Error(`Cannot build the agent:\n${(await output).join("\n")}`);
}

async function inTheLab(): Promise<void> {
  console.log("A coordinator and two machines behind two NATs of the Linux kernel, in network namespaces");
  const lab = await createLab({ sites: [{ nat: "portrestricted" }, { nat: "restricted" }] });
  cleanUp = async () => lab.destroy();
  const coordinator = await startCoordinator(lab);
  tell("coordinator", `ready at ${coordinator.url}, STUN on ${coordinator.machine.addresses.join(" and ")}`);
  const key = await coordinator.createKey({ reusable: true });
  const [laptop, nas] = await Promise.all(
    ["laptop", "nas"].map(async (name, index) =>
      startAgent(lab, hostOf(lab, index), { name, url: coordinator.url, key, extra: ["--tun", "on"] }),
    ),
  );
  if (laptop === undefined || nas === undefined) return;
  const online = await laptop.events.next("peer_online");
  await laptop.waitDirect("nas", DIRECT_TIMEOUT_SECONDS);
  await nas.waitDirect("laptop", DIRECT_TIMEOUT_SECONDS);
  const [changed] = await Promise.all([laptop.directEvent("nas"), nas.directEvent("laptop")]);
  for (const agent of [laptop, nas]) {
    // Returns once the NAT is known: a path is often there before.
    await agent.command(["netcheck"]);
    introduce((await agent.status()).self);
  }
  const cli: Cli = async (...command) => (await laptop.command(command)).stdout;
  await tellPath(cli, changed.at - online.at);
  const file = await transferFile(nas, laptop, { bytes: FILE_BYTES });
  const { meshIPv4 } = (await nas.status()).self;
  const rate = (file.bytes * 8) / file.milliseconds / 1e6;
  tell(
    "file",
    `laptop fetched ${file.bytes / 1e6} MB from http://${meshIPv4}:8000/ in ${(file.milliseconds / 1000).toFixed(2)} s, ${rate.toFixed(2)} Gbit/s, checksum right`,
  );
  await tellWhy(cli);
}

function hostOf(lab: Lab, index: number) {
  const host = lab.hosts[index];
  if (host === undefined) throw new Error(`The lab has no host ${index}`);
  return host;
}

async function onLoopback(obstacle: string): Promise<void> {
  console.log(`A coordinator and two agents on loopback, without real NATs: ${obstacle}`);
  const stage = new Stage();
  cleanUp = async () => stage.end();
  const coordinator = await stage.coordinator();
  tell("coordinator", `ready at ${coordinator.url}`);
  const [laptop, nas] = await Promise.all(["laptop", "nas"].map(async (name) => stage.member(coordinator, name)));
  if (laptop === undefined || nas === undefined) return;
  const online = await laptop.events.next("peer_online");
  const changed = await laptop.events.next("path_changed", { accept: ({ to }) => to === "direct" });
  for (const agent of [laptop, nas]) {
    await agent.command("netcheck");
    introduce(((await agent.json("status")) as AgentStatus).self);
  }
  const cli: Cli = async (...command) => (await laptop.command(...command)).stdout;
  await tellPath(cli, changed.at - online.at);
  tell("file", "not shown: it needs a TUN device, and with it root on Linux");
  await tellWhy(cli);
}

function introduce({ name, meshIPv4, meshIPv6, tun, nat }: AgentStatus["self"]): void {
  tell(name, `joined with ${meshIPv4} and ${meshIPv6}${tun === null ? "" : ` on ${tun}`}`);
  const doubt = nat.certain ? "" : ", or a more permissive kind";
  const what = nat.mapping === "none" ? "no NAT in the way, filtering of" : "NAT type";
  tell(name, `${what} ${nat.label}${doubt}, seen from outside as ${nat.publicAddress ?? "nothing"}`);
}

async function tellPath(cli: Cli, milliseconds: number): Promise<void> {
  const { path } = JSON.parse(await cli("why", "nas", "--json")) as Pick<AgentStatus["peers"][number], "path">;
  const way = `${path?.localAddress ?? "?"} to ${path?.remoteAddress ?? "?"}`;
  tell("path", `direct ${milliseconds.toFixed(0)} ms after laptop saw nas online: ${way}`);
  const pings = await cli("ping", "nas", "-c", `${PINGS}`, "-i", "0.1");
  tell("ping", pings.trim().split("\n").at(-1) ?? "");
}

async function tellWhy(cli: Cli): Promise<void> {
  // The first paragraph; what follows is history.
  const [first = ""] = (await cli("why", "nas")).split("\n\n");
  for (const [index, line] of first.trim().split("\n").entries()) tell(index === 0 ? "why nas" : "", line);
}
