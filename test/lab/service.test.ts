/** The service runs with fewer rights than root: they must be enough for the device, its routes, port 53, /etc/hosts, and a direct path. */
import { expect, test } from "vitest";
import { unitText } from "../../agent/cli/service/unit.ts";
import { withLab } from "./lab_case.ts";
import { bothDirect, startAgent, startCoordinator, transferFile } from "./mesh.ts";
import { NameWorld } from "./name_world.ts";

const missing = Bun.which("setpriv") === null ? " (skipped: setpriv is not installed)" : "";
/** "-all,+net_admin,+net_bind_service": what the unit leaves of root. */
const capabilities = /^CapabilityBoundingSet=(.+)$/m
  .exec(unitText("/bin/true"))?.[1]
  ?.split(" ")
  .map((name) => `+${name.toLowerCase().replace("cap_", "")}`);

test.skipIf(missing !== "")(`the capabilities of the unit are enough${missing}`, async () => {
  await withLab({ sites: [{ nat: "restricted" }, { nat: "portrestricted" }] }, async (lab) => {
    const [host, other] = lab.hosts;
    if (host === undefined || other === undefined) throw new Error("This lab has not two hosts");
    const world = await NameWorld.create(lab, host, { resolved: false });
    const coordinator = await startCoordinator(lab);
    const key = await coordinator.createKey({ reusable: true });
    const two = await startAgent(lab, other, { name: "two", url: coordinator.url, key });
    const { prefix, env } = world.agentOptions;
    const limits = ["setpriv", `--bounding-set=-all,${capabilities?.join(",") ?? ""}`, "--no-new-privs"];
    const one = await startAgent(lab, host, {
      name: "one",
      url: coordinator.url,
      key,
      prefix: [...prefix, ...limits],
      env,
      extra: ["--tun", "on"],
    });
    const status = await host.execChecked(["grep", "^Cap\\(Eff\\|Bnd\\)", `/proc/${one.process.pid}/status`]);
    // CAP_NET_BIND_SERVICE is 10, CAP_NET_ADMIN 12 (capabilities(7)).
    expect(status.match(/[0-9a-f]{16}/g)).toEqual(["0000000000001400", "0000000000001400"]);
    await bothDirect(one, two);
    expect((await transferFile(one, two, { bytes: 1_000_000 })).bytes).toBe(1_000_000);
    await expect.poll(() => world.lookup("two.mesh", "ahostsv4"), { timeout: 8000 }).toMatch(/^100\./);
    expect(await one.stop()).toBe(0);
    expect(world.hosts).toBe(world.hostsAtFirst);
  });
});
