/**
 * The names of the mesh: which machine is called what, and the other way round.
 *
 * Names come from peers and from the coordinator, so a few are never given out, whoever has them.
 */
import { canonicalIp, ipBytes, isIPv6 } from "../../shared/address.ts";

/** The domain of all meshes. Not delegated in the public DNS, and asked of nobody but this machine's own agent. */
export const MESH_DOMAIN = "mesh";

/**
 * `localhost` means this machine alone (RFC 6761 §6.3). Programs trust the other two for a proxy configuration and for a router as soon
 * as they resolve, so that a member of that name would get everybody's web traffic.
 */
const NEVER_GIVEN_OUT: ReadonlySet<string> = new Set(["localhost", "wpad", "isatap"]);

export interface Member {
  /** One label of DNS, lower case. */
  readonly name: string;
  readonly meshIPv4: string | undefined;
  readonly meshIPv6: string | undefined;
}

export class Zone {
  readonly #byName = new Map<string, Member>();
  readonly #byReverse = new Map<string, string>();

  constructor(members: readonly Member[]) {
    for (const member of members) {
      if (NEVER_GIVEN_OUT.has(member.name) || this.#byName.has(member.name)) continue;
      this.#byName.set(member.name, member);
      for (const ip of addressesOf(member)) this.#byReverse.set(reverseName(ip), member.name);
    }
  }

  get members(): readonly Member[] {
    return [...this.#byName.values()];
  }

  /** @param name without the domain, lower case */
  member(name: string): Member | undefined {
    return this.#byName.get(name);
  }

  /** The machine whose address this name of `in-addr.arpa` or `ip6.arpa` stands for. */
  nameOfReverse(reverse: string): string | undefined {
    return this.#byReverse.get(reverse);
  }

  get reverseNames(): readonly string[] {
    return [...this.#byReverse.keys()];
  }
}

export const addressesOf = ({ meshIPv4, meshIPv6 }: Member): string[] =>
  [meshIPv4, meshIPv6].flatMap((ip) => (ip === undefined ? [] : (canonicalIp(ip) ?? [])));

/** RFC 1035 §3.5 and RFC 3596 §2.5. */
function reverseName(ip: string): string {
  if (!isIPv6(ip)) return `${ip.split(".").toReversed().join(".")}.in-addr.arpa`;
  const nibbles = Array.from(ipBytes(ip), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${nibbles.split("").toReversed().join(".")}.ip6.arpa`;
}
