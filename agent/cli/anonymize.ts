/**
 * Takes out of a text what tells who and where somebody is: names, ids and addresses. The same one becomes the same word everywhere, and its kind
 * stays, so that the text still tells what happened.
 */
import { canonicalIp, cidrContains, isPrivate } from "../../shared/address.ts";
import { withoutKeys } from "../state/user_error.ts";

const IPV4 = /(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])/g;
const IPV6 = /(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])/gi;
const HOME = /\/(?:home|Users)\/[^/\s"]+/g;

export class Anonymizer {
  /** Longest first, so that a name inside another one does not spoil it. */
  readonly #words: readonly (readonly [RegExp, string])[];
  readonly #addresses = new Map<string, string>();
  readonly #counts = new Map<string, number>();

  /** @param words what each known word is to be called; words of other programs' making are matched as they are, whatever they hold */
  constructor(words: ReadonlyMap<string, string>) {
    this.#words = [...words]
      .filter(([word]) => word !== "")
      .toSorted(([a], [b]) => b.length - a.length)
      .map(([word, name]) => [new RegExp(`(?<![\\w-])${RegExp.escape(word)}(?![\\w-])`, "gi"), name]);
  }

  text(text: string): string {
    let result = withoutKeys(text);
    for (const [word, name] of this.#words) result = result.replace(word, name);
    return result
      .replace(HOME, "/home/user")
      .replace(IPV4, (ip) => this.#address(ip))
      .replace(IPV6, (ip) => this.#address(ip));
  }

  /** Every text in it; the names of fields stay. */
  value(value: unknown): unknown {
    if (typeof value === "string") return this.text(value);
    if (Array.isArray(value)) return value.map((each) => this.value(each));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, this.value(each)]));
  }

  #address(text: string): string {
    const ip = canonicalIp(text);
    // A time of day, or a version.
    if (ip === undefined) return text;
    const known = this.#addresses.get(ip);
    if (known !== undefined) return known;
    const kind = kindOf(ip);
    if (kind === undefined) return text;
    const count = (this.#counts.get(kind) ?? 0) + 1;
    this.#counts.set(kind, count);
    this.#addresses.set(ip, `${kind}-${count}`);
    return `${kind}-${count}`;
  }
}

/** Undefined: an address that everybody has. */
function kindOf(ip: string): string | undefined {
  const family = ip.includes(":") ? "ipv6" : "ipv4";
  if (ip.startsWith("127.") || ["::1", "::", "0.0.0.0"].includes(ip)) return undefined;
  if (cidrContains("169.254.0.0/16", ip) || cidrContains("fe80::/10", ip)) return `link-local-${family}`;
  return `${isPrivate(ip) ? "private" : "public"}-${family}`;
}
