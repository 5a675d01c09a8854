import { describe, expect, test } from "vitest";
import { listInterfaceAddresses, sourceAddressFor } from "../../../../agent/driver/linux/interfaces.ts";
import { libcUnavailable } from "../../../../agent/driver/linux/libc.ts";

const unavailable = libcUnavailable();
if (unavailable !== undefined) console.log(`Interfaces by netlink are not tested: ${unavailable}`);

describe.runIf(unavailable === undefined)("on this machine", () => {
  test("the loopback address is listed as such", () => {
    expect(listInterfaceAddresses()).toContainEqual(
      expect.objectContaining({ name: "lo", ip: "127.0.0.1", prefix: 8, isUp: true, isLoopback: true, isTun: false }),
    );
  });

  test("packets to a loopback address leave from one", () => {
    expect(sourceAddressFor("127.0.0.1")).toBe("127.0.0.1");
  });
});
