/**
 * The remedy that `why` names for two symmetric routers, applied as a user would: the path becomes direct. The other remedies are applied
 * where their networks are: UPnP in port_mapping.test.ts, hairpin and client isolation in neighbours.test.ts, UDP let out in
 * switching.test.ts.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, startAgent, startPair } from "./mesh.ts";

const PORT = 41_641;

test("a port forward on one of two symmetric routers, and --udp-port of the same number", async () => {
  await withLab({ sites: [{ nat: "symmetric" }, { nat: "symmetric" }] }, async (lab) => {
    const { coordinator, one, two } = await startPair(lab);
    await one.waitWhy(two.name, /a port forward or UPnP on either router would make a direct path possible/);
    expect((await one.peer(two.name)).path?.kind).toBe("ssh");
    const { router, host, publicAddress } = lab.site(1);
    await router?.execChecked(["nft", "-f", "-"], {
      input: `table ip forward {
 chain pre { type nat hook prerouting priority dstnat - 5;
  iifname "wan" ip daddr ${publicAddress} udp dport ${PORT} dnat to ${host.address}
 }
}
`,
    });
    expect(await one.stop()).toBe(0);
    const { name, stateDir } = one;
    const again = await startAgent(lab, host, {
      name,
      stateDir,
      url: coordinator.url,
      extra: ["--udp-port", `${PORT}`],
      waitJoined: false,
    });
    await bothDirect(again, two);
    expect((await two.peer(name)).path?.remoteAddress).toBe(`${publicAddress}:${PORT}`);
  });
});
