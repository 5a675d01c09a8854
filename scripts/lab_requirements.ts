/** What real NATs in network namespaces need of this machine, for the lab and the demo. */
import { closeSync, openSync } from "node:fs";

/** The first thing that keeps the lab from running here, with what to do about it. */
export function missingForLab(): string | undefined {
  if (process.platform !== "linux") return "network namespaces exist only on Linux";
  if (process.getuid?.() !== 0) return "only root may make network namespaces; run it as root";
  const missing = ["ip", "nft", "conntrack"].filter((tool) => Bun.which(tool) === null);
  if (missing.length > 0) {
    return `${missing.join(", ")} not found; install the packages iproute2, nftables and conntrack`;
  }
  try {
    closeSync(openSync("/dev/net/tun", "r+"));
  } catch {
    return "/dev/net/tun cannot be opened; load the tun module (modprobe tun), or give the container the device";
  }
  const trial = `tmtrial${process.pid}`;
  const made = Bun.spawnSync(["ip", "netns", "add", trial]);
  if (made.exitCode !== 0) {
    return `this machine forbids network namespaces (${made.stderr.toString().trim()}); allow CAP_SYS_ADMIN`;
  }
  Bun.spawnSync(["ip", "netns", "delete", trial]);
  return undefined;
}
