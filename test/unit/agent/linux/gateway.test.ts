import { expect, test } from "vitest";
import { gatewayInProc } from "../../../../agent/driver/linux/gateway.ts";

const HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

test("the gateway of the default route with the least metric", () => {
  const table = [
    "wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0",
    "eth0\t00000000\t0100010A\t0003\t0\t0\t100\t00000000\t0\t0\t0",
    "eth0\t0000010A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0",
  ].join("\n");
  expect(gatewayInProc(HEAD + table)).toBe("10.1.0.1");
});

test.each([
  ["no routes", ""],
  ["a default route without a gateway", "ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0"],
  ["one that is down", "eth0\t00000000\t0100010A\t0002\t0\t0\t0\t00000000\t0\t0\t0"],
  ["half of the internet", "tun0\t00000000\t0100010A\t0003\t0\t0\t0\t00000080\t0\t0\t0"],
  ["something else", "eth0 00000000 xyz 0003 0 0 0 00000000"],
])("none: %s", (_, table) => {
  expect(gatewayInProc(HEAD + table)).toBeUndefined();
});
