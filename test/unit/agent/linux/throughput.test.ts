/** Two hundred thousand datagrams through the Linux engine: none is lost, none leaves garbage behind. The rate is printed, not judged. */
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { libcUnavailable } from "../../../../agent/driver/linux/libc.ts";

const unavailable = libcUnavailable();
if (unavailable !== undefined) console.log(`The Linux engine's throughput is not tested: ${unavailable}`);

describe.runIf(unavailable === undefined)("the engine itself allocates nothing per datagram", () => {
  test.each([
    ["of 1300 bytes", ["alone"]],
    ["of 100 and 200 bytes in turn, many a call", ["runs"]],
    ["of 100 and 200 bytes in turn, one a call", ["runs", "udp-send,udp-receive"]],
  ])("%s", async (what, mode) => {
    const scenario = fileURLToPath(new URL("./throughput_scenario.ts", import.meta.url));
    const child = Bun.spawn([process.execPath, scenario, ...mode], {
      stdout: "pipe",
      stderr: "pipe",
      timeout: 18_000,
      // Without a collector, what was ever allocated can be counted at the end.
      env: { ...process.env, BUN_JSC_useGC: "0" },
    });
    const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    expect(await child.exited, errors).toBe(0);

    const { perSecond, newObjects, received } = JSON.parse(output) as Record<string, number>;
    console.log(`Linux engine on loopback: ${perSecond} datagrams a second ${what}, sent and received`);
    expect(received).toBe(200_000);
    expect(newObjects).toBeLessThan(2000);
  });
});
