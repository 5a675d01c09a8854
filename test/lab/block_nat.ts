/**
 * Turns a site's router into a carrier's NAT that never lets an external port serve two destinations (block_nat_program.ts). TCP keeps the
 * kernel's NAT.
 *
 * UDP from the LAN, and from the internet to the router's own address, is led into the program's TUN device by rules that come before
 * the table of local addresses, and past conntrack. What the program has rewritten is forwarded like any packet.
 */
import { fileURLToPath } from "node:url";
import type { LabProcess } from "./process.ts";
import type { Site } from "./site.ts";

const PROGRAM = fileURLToPath(new URL("block_nat_program.ts", import.meta.url));
const START_MS = 5000;
const FIRST_PORT = 40_000;
/** Short, so that a round finds the ports of the last one free; Linux forgets an unanswered flow after as long. */
export const IDLE_SECONDS = 30;
const TABLE = 77;

export interface BlockNatTable {
  /** Ports that are taken at this moment, and at most so far. */
  readonly now: number;
  readonly peak: number;
  /** Packets for which no port was free. */
  readonly refused: number;
  /** Made so far. */
  readonly sessions: number;
}

export class BlockNat {
  readonly #process: LabProcess;

  constructor(child: LabProcess) {
    this.#process = child;
  }

  async table(): Promise<BlockNatTable> {
    return this.#ask("table");
  }

  /** As a restart of the router. */
  async forget(): Promise<void> {
    await this.#ask("forget");
  }

  async #ask(command: string): Promise<BlockNatTable> {
    const since = this.#process.lines.length;
    this.#process.write(`${command}\n`);
    const answer = await this.#process.waitFor(
      "the table",
      (line) => (this.#process.lines.indexOf(line) >= since && line.text.startsWith("{") ? line.text : undefined),
      START_MS,
    );
    return JSON.parse(answer) as BlockNatTable;
  }
}

/** @param ports of the block, from 40000 */
export async function startBlockNat(site: Site, ports: number, idleSeconds = IDLE_SECONDS): Promise<BlockNat> {
  const { router, lan, publicAddress } = site;
  if (router === undefined || lan === undefined) throw new Error(`Site ${site.index} has no router`);
  const child = router.spawn([
    process.execPath,
    PROGRAM,
    publicAddress,
    ...[FIRST_PORT, ports, idleSeconds].map(String),
  ]);
  await child.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), START_MS);
  const script = [
    "ip link set blocknat up",
    // Its packets come from our own address, and answers would leave by another device.
    "echo 1 > /proc/sys/net/ipv4/conf/blocknat/accept_local",
    "for setting in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $setting; done",
    `ip route add default dev blocknat table ${TABLE}`,
    "ip rule add pref 100 lookup local",
    "ip rule del pref 0",
    `ip rule add pref 10 iif lan ipproto udp lookup ${TABLE}`,
    `ip rule add pref 11 iif wan ipproto udp lookup ${TABLE}`,
    "nft -f - <<'EOF'",
    rules(publicAddress),
    "EOF",
  ];
  await router.execChecked(["sh", "-e"], { input: `${script.join("\n")}\n` });
  return new BlockNat(child);
}

const rules = (external: string): string => `flush ruleset
table ip nat {
 chain post { type nat hook postrouting priority srcnat;
  oifname "wan" meta l4proto != udp snat to ${external}
 }
}
table inet fw {
 chain raw { type filter hook prerouting priority raw;
  meta l4proto udp notrack
 }
 chain input { type filter hook input priority filter;
  iifname "wan" ct state established,related accept
  iifname "wan" meta l4proto { icmp, ipv6-icmp } accept
  iifname "wan" drop
 }
 chain forward { type filter hook forward priority filter;
  ct state established,related accept
  meta l4proto udp accept
  iifname "wan" drop
 }
}`;
