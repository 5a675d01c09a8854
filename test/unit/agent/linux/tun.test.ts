/** The TUN device and netlink on the real kernel, in a network namespace that only this test sees. */
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { libcUnavailable } from "../../../../agent/driver/linux/libc.ts";
import { chooseOffloads } from "../../../../agent/driver/linux/offloads.ts";
import { TunDevice, TunError } from "../../../../agent/driver/linux/tun.ts";

const reason = libcUnavailable() ?? (process.getuid?.() === 0 ? undefined : "only root may make network namespaces");
if (reason !== undefined) console.log(`The TUN device is not tested: ${reason}`);

test.runIf(reason === undefined)("ping reaches the plane and comes back, and nothing stays behind", async () => {
  const scenario = fileURLToPath(new URL("./tun_scenario.ts", import.meta.url));
  const child = Bun.spawn(["unshare", "--net", process.execPath, scenario], {
    stdout: "pipe",
    stderr: "pipe",
    timeout: 15_000,
  });
  const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  expect(await child.exited, errors).toBe(0);

  expect(JSON.parse(output)).toEqual({
    name: "tm0",
    secondName: "tm1",
    added: [true, true, false],
    answers: [20, 20, 3],
    answered: 43,
    inUse: 'Cannot open TUN device "tm0": another program uses it; stop that program or choose another --tun-name',
    ownChanges: 0,
    source4: "100.96.0.1",
    source6: "fd00:7::1",
    covered: { kind: "route", cidr: "192.0.2.0/24", interface: "bridge0" },
    free: true,
    bridges: ["bridge0"],
    tunAddresses: ["100.96.0.1/32", "fd00:7::1/128"],
    // A TAP is an interface like any other.
    taps: [{ ip: "198.51.100.1", isTun: false }],
    lostWhenDeleted: "lost",
    leftBehind: "",
  });
});

test.each(["", "a name", "waytoolongforaname", "%d%d", "..", "a/b"])('the device name "%s" is refused', (name) => {
  let refusal: unknown;
  try {
    TunDevice.open(name, chooseOffloads(undefined));
  } catch (error) {
    refusal = error;
  }
  expect(refusal).toBeInstanceOf(TunError);
  expect(refusal).toMatchObject({ code: "bad_name" });
});
