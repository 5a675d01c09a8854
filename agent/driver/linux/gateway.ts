/** The IPv4 gateway of the default route: from the kernel by netlink, or from /proc where that is refused. */
import { readFileSync } from "node:fs";
import { canonicalIp } from "../../../shared/address.ts";
import * as c from "./libc.ts";
import { Netlink } from "./netlink.ts";
import { defaultRoute } from "./routing.ts";

const PROC_ROUTES = "/proc/net/route";
const RTF_UP = 0x1;
const RTF_GATEWAY = 0x2;

/** Undefined without a default route, with one that has no gateway (a point-to-point link), and on systems other than Linux. */
export function ipv4Gateway(): string | undefined {
  if (c.libcUnavailable() === undefined) {
    try {
      const netlink = new Netlink();
      try {
        return defaultRoute({ routes: netlink.routes() }, 4)?.gateway;
      } finally {
        netlink.close();
      }
    } catch {
      // Some sandboxes forbid netlink sockets.
    }
  }
  try {
    return gatewayInProc(readFileSync(PROC_ROUTES, "utf8"));
  } catch {
    return undefined;
  }
}

/**
 * `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`, addresses as hexadecimal numbers in the machine's own byte order, which
 * is little-endian wherever we run.
 */
export function gatewayInProc(table: string): string | undefined {
  let best: { readonly ip: string; readonly metric: number } | undefined;
  for (const line of table.split("\n").slice(1)) {
    const [, destination, gateway = "", flags = "", , , metricText, mask] = line.trim().split(/\s+/);
    const isUsable = (Number.parseInt(flags, 16) & (RTF_UP | RTF_GATEWAY)) === (RTF_UP | RTF_GATEWAY);
    if (destination !== "00000000" || mask !== "00000000" || !isUsable || !/^[0-9A-F]{8}$/i.test(gateway)) continue;
    const bytes = gateway.match(/../g) ?? [];
    const ip = canonicalIp(
      bytes
        .toReversed()
        .map((byte) => Number.parseInt(byte, 16))
        .join("."),
    );
    const metric = Number(metricText);
    if (ip !== undefined && (best === undefined || metric < best.metric)) best = { ip, metric };
  }
  return best?.ip;
}
