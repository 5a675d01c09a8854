/**
 * Debian's miniupnpd on a router of the lab: a real peer for port mapping by PCP, NAT-PMP and UPnP.
 *
 * It refuses a documentation address as its external one and has no option for that, so a copy of the program runs, with the lab's range
 * in its table of reserved addresses replaced by an address that does not occur. It speaks PCP and NAT-PMP on one port or not at all; where a
 * test wants one of them alone, the router drops the other by its version byte.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Protocol } from "../../agent/portmap/client.ts";
import type { LabProcess } from "./process.ts";
import type { Lab, Machine, Site } from "./topology.ts";

export const MINIUPNPD = "/usr/sbin/miniupnpd";
const TABLE = "miniupnpd";
const START_MS = 3000;
/** 198.51.100.0 and 100.64.0.0, each with the bits that the mask lacks, as in the program's table; and 240.0.0.0 with none instead. */
const RESERVED_LAB = Buffer.from([0, 100, 51, 198, 8, 0, 0, 0]);
const RESERVED_CARRIER = Buffer.from([0, 0, 64, 100, 22, 0, 0, 0]);
const HARMLESS = Buffer.from([0, 0, 0, 240, 0, 0, 0, 0]);

export interface MiniupnpdOptions {
  /** The only protocol to speak; default all three. */
  readonly only?: Protocol;
  /** Describes itself as a gateway of version 1. */
  readonly isVersion1?: boolean;
  /** Maps ports although its own address is one of a carrier's network, as cheap routers do. */
  readonly mapsBehindCarrier?: boolean;
}

export class Miniupnpd {
  readonly process: LabProcess;
  readonly #router: Machine;

  private constructor(process: LabProcess, router: Machine) {
    this.process = process;
    this.#router = router;
  }

  static async start(lab: Lab, site: Site, options: MiniupnpdOptions = {}): Promise<Miniupnpd> {
    const { router, lan } = site;
    if (router === undefined || lan === undefined) throw new Error(`Site ${site.index} has no router`);
    const directory = lab.directory("miniupnpd");
    const program = join(directory, "miniupnpd");
    const config = join(directory, "miniupnpd.conf");
    writeFileSync(program, programFor(options), { mode: 0o755 });
    writeFileSync(config, configuration(lan.cidr, options));
    await router.execChecked(["nft", "-f", "-"], { input: ruleset(options.only) });
    const child = router.spawn([program, "-d", "-f", config, "-P", join(directory, "pid")]);
    const ready = options.only === "upnp" ? "HTTP listening on port" : "Listening for NAT-PMP/PCP traffic";
    await child.waitFor("its sockets", ({ text }) => (text.includes(ready) ? true : undefined), START_MS);
    return new Miniupnpd(child, router);
  }

  /** What the router forwards, as "UDP external -> inside address:port", from the kernel's own rules. */
  async mappings(): Promise<readonly string[]> {
    const rules = await this.#router.execChecked(["nft", "list", "chain", "inet", TABLE, "pre_upnp"]);
    return [...rules.matchAll(/dport (\d+) dnat ip to ([\d.]+:\d+)/g)].map(([, port, to]) => `UDP ${port} -> ${to}`);
  }

  /** Its own log of what it was asked. */
  get requests(): readonly string[] {
    const asked = /SSDP M-SEARCH from|HTTP REQUEST from|PCP request received from|NAT-PMP request received from/;
    return this.process.lines.flatMap(({ text }) => (asked.test(text) ? [text] : []));
  }

  /** SIGTERM: it says good-bye and takes its rules with it. */
  async stop(): Promise<void> {
    await this.process.stop();
  }

  /** The power fails: no good-bye, and the rules are gone. */
  async cutPower(): Promise<void> {
    this.process.signal("SIGKILL");
    await this.process.exited;
    await this.#router.execChecked(["nft", "delete", "table", "inet", TABLE]);
  }
}

function programFor({ mapsBehindCarrier }: MiniupnpdOptions): Buffer {
  const program = readFileSync(MINIUPNPD);
  for (const entry of [RESERVED_LAB, ...(mapsBehindCarrier === true ? [RESERVED_CARRIER] : [])]) {
    const at = program.indexOf(entry);
    if (at < 0 || program.includes(entry, at + 1)) {
      throw new Error(`The table of reserved addresses in ${MINIUPNPD} is not as it was: another version?`);
    }
    HARMLESS.copy(program, at);
  }
  return program;
}

const configuration = (lan: string, { only, isVersion1 }: MiniupnpdOptions): string => `ext_ifname=wan
listening_ip=lan
enable_natpmp=${only === "upnp" ? "no" : "yes"}
enable_upnp=${only === undefined || only === "upnp" ? "yes" : "no"}
force_igd_desc_v1=${isVersion1 === true ? "yes" : "no"}
secure_mode=yes
system_uptime=no
uuid=7a2ec0f0-0000-4000-8000-000000000001
upnp_table_name=${TABLE}
upnp_nat_table_name=${TABLE}
upnp_forward_chain=forward_upnp
upnp_nat_chain=pre_upnp
upnp_nat_postrouting_chain=post_upnp
allow 1024-65535 ${lan} 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`;

/** Beside the lab's own tables: a packet must pass all of them, and these let everything through that the others do. */
const ruleset = (only: Protocol | undefined): string => `table inet ${TABLE} {
 chain forward_upnp { }
 chain pre_upnp { }
 chain post_upnp { }
 chain forward { type filter hook forward priority filter; jump forward_upnp; }
 chain pre { type nat hook prerouting priority dstnat; jump pre_upnp; }
 chain post { type nat hook postrouting priority srcnat - 1; jump post_upnp; }
 chain input { type filter hook input priority filter - 1;
  ${only === "pcp" ? "udp dport 5351 @th,64,8 0 drop" : ""}
  ${only === "nat-pmp" ? "udp dport 5351 @th,64,8 2 drop" : ""}
 }
}
`;
