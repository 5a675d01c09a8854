/** Parsers of single option values: text in, typed value or a reason out. Used for flags and for the environment alike. */
import { InvalidArgumentError } from "commander";
import { canonicalIp } from "../../shared/address.ts";
import { MAX_BENCH_SECONDS } from "../overlay/bench_message.ts";
import { MAX_PUNCH } from "../path/punch_plan.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import type { WaitCondition } from "../local/contract.ts";
import type { ForwardSpec, ListenSpec } from "../state/forward_spec.ts";
import type { JoinKey } from "./config.ts";

/** About 23 days: the longest delay that a 32-bit timer takes. */
const MAX_SECONDS = 2_000_000;
/** `hello` of the signalling protocol carries at most 200 characters. */
const MAX_KEY_LENGTH = 200;
/** IFNAMSIZ of Linux is 16 with the final zero. */
const MAX_TUN_NAME_LENGTH = 15;
const LOOPBACK = "127.0.0.1";
const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

export function seconds(text: string): number {
  const value = Number(text);
  if (/^(\d+\.?\d*|\.\d+)$/.test(text) && value > 0 && value <= MAX_SECONDS) return value;
  throw new InvalidArgumentError(`It must be a number of seconds above 0 and up to ${MAX_SECONDS}.`);
}

export function portNumber(text: string): number {
  if (/^\d{1,5}$/.test(text) && Number(text) <= 65_535) return Number(text);
  throw new InvalidArgumentError("It must be a port number from 0 (any free one) to 65535.");
}

export function count(text: string): number {
  if (/^\d{1,9}$/.test(text) && Number(text) > 0) return Number(text);
  throw new InvalidArgumentError("It must be a whole number above 0.");
}

/** What an attempt at guessing ports may take (PROTOCOL.md, "Punching with many packets"): the built-in caps can only be lowered. */
const between =
  (least: number, most: number) =>
  (text: string): number => {
    if (/^\d{1,9}$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text);
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
export const punchSockets = between(1, MAX_PUNCH.sockets);
export const punchPackets = between(0, MAX_PUNCH.packets);
export const punchRate = between(1, MAX_PUNCH.perSecond);

export const ports = (text: string, before: readonly number[] = []): readonly number[] => [
  ...before,
  ...text.split(",").map(peerPort),
];

export function benchSeconds(text: string): number {
  if (/^\d{1,3}$/.test(text) && Number(text) >= 1 && Number(text) <= MAX_BENCH_SECONDS) return Number(text);
  throw new InvalidArgumentError(`It must be a whole number of seconds from 1 to ${MAX_BENCH_SECONDS}.`);
}

/** A machine's name as its user chooses it: one label of DNS, since it can become a host name. */
export function machineName(text: string): string {
  const name = text.toLowerCase();
  if (NAME.test(name)) return name;
  throw new InvalidArgumentError(
    "It must have 1 to 63 letters, digits and hyphens, and begin and end with a letter or digit.",
  );
}

/** How a user refers to a peer: its name, also with ".mesh", its id, or its mesh address. */
export function peerReference(text: string): string {
  const reference = text.toLowerCase();
  if (NAME.test(reference.replace(/\.mesh\.?$/, ""))) return reference.replace(/\.mesh\.?$/, "");
  const ip = canonicalIp(reference);
  if (ip !== undefined) return ip;
  throw new InvalidArgumentError("It must be the name, the id or the mesh address of a peer.");
}

/** A port that somebody listens on. */
export function peerPort(text: string): number {
  if (/^\d{1,5}$/.test(text) && Number(text) >= 1 && Number(text) <= 65_535) return Number(text);
  throw new InvalidArgumentError("It must be a port number from 1 to 65535.");
}

/** `[udp:][BIND:]PORT:PEER:PORT`, IPv6 addresses in brackets. */
export function forward(text: string): ForwardSpec {
  const protocol = /^udp:/i.test(text) ? "udp" : "tcp";
  const parts = splitAtColons(text.replace(/^(udp|tcp):/i, ""));
  if (parts.length !== 3 && parts.length !== 4) {
    throw new InvalidArgumentError('It must be [udp:][BIND:]PORT:PEER:PORT, as in "8080:nas:80".');
  }
  const [remotePort = "", peer = "", ...local] = parts.toReversed();
  return { protocol, ...listenOn(local.toReversed()), peer: peerReference(peer), peerPort: peerPort(remotePort) };
}

/** `[BIND:]PORT`. */
export function listen(text: string): ListenSpec {
  const parts = splitAtColons(text);
  if (parts.length > 2) throw new InvalidArgumentError('It must be [BIND:]PORT, as in "1080" or "[::1]:1080".');
  return listenOn(parts);
}

/** Repeatable, and several in one text behind commas, as in the environment. */
export const forwards = (text: string, before: readonly ForwardSpec[] = []): readonly ForwardSpec[] => [
  ...before,
  ...text.split(",").map(forward),
];
export const listens = (text: string, before: readonly ListenSpec[] = []): readonly ListenSpec[] => [
  ...before,
  ...text.split(",").map(listen),
];
export const exposedPorts = (text: string, before: readonly (number | "all")[] = []): readonly (number | "all")[] => [
  ...before,
  ...text.split(",").map((port) => (port === "all" ? "all" : peerPort(port))),
];

function listenOn(parts: readonly string[]): ListenSpec {
  const [port = "", bind = LOOPBACK] = parts.toReversed();
  const ip = bind === "localhost" ? LOOPBACK : bind === "*" ? "0.0.0.0" : canonicalIp(bind);
  if (ip === undefined) throw new InvalidArgumentError(`"${bind}" is not an IP address to listen on.`);
  return { bind: ip, port: portNumber(port) };
}

/** At colons outside of brackets; the brackets go. */
const splitAtColons = (text: string): string[] =>
  (text.match(/(?:\[[^\]]*\]|[^:[\]])+|(?<=:|^)(?=:|$)/g) ?? []).map((part) => part.replace(/^\[(.*)\]$/, "$1"));

export function tunName(text: string): string {
  if (text.length <= MAX_TUN_NAME_LENGTH && /^[A-Za-z0-9_-][A-Za-z0-9_.-]*$/.test(text)) return text;
  throw new InvalidArgumentError(
    `It must have 1 to ${MAX_TUN_NAME_LENGTH} letters, digits, hyphens, underscores and dots.`,
  );
}

export function waitCondition(text: string): WaitCondition {
  if (text === "joined") return { for: "joined" };
  const match = /^(peer|direct)=(.+)$/.exec(text);
  if (match === null) throw new InvalidArgumentError('It must be "joined", "peer=NAME" or "direct=NAME".');
  return { for: match[1] === "peer" ? "peer" : "direct", peer: peerReference(match[2] ?? "") };
}

/** How booleans are written in the environment. */
export function truth(text: string): boolean {
  const value = text.toLowerCase();
  if (["1", "true", "yes", "on"].includes(value)) return true;
  if (["0", "false", "no", "off"].includes(value)) return false;
  throw new InvalidArgumentError("It must be 1 or 0.");
}

/** The coordinator's URL without what must not be in it. Throws UserError 78. */
export function coordinatorUrl(text: string): string {
  const refuse = (reason: string): never => {
    throw new UserError(EXIT.badConfiguration, `The coordinator URL cannot be used: ${reason}`);
  };
  // "nas:8080" parses as a URL with the scheme "nas".
  if (!/^https?:\/\//i.test(text)) {
    return refuse(`it must begin with http:// or https://, as in "http://coordinator.example:8080"`);
  }
  if (!URL.canParse(text)) return refuse(`"${text}" is not a URL`);
  const url = new URL(text);
  if (url.username !== "" || url.password !== "") {
    return refuse("it must not contain a user name or password; machines are let in by --key");
  }
  if (url.search !== "" || url.hash !== "") return refuse('it must not contain "?" or "#"');
  if (url.port === "0") return refuse("port 0 cannot be connected to");
  return url.href.replace(/\/+$/, "");
}

/** An HTTP or SOCKS5 proxy, credentials allowed. Throws UserError 78, without the password. */
export function proxyUrl(text: string): string {
  const isKnown = /^(https?|socks5h?):\/\//i.test(text) && URL.canParse(text) && new URL(text).host !== "";
  if (isKnown) return text;
  throw new UserError(
    EXIT.badConfiguration,
    'The proxy cannot be used: give it as "http://HOST:PORT" or "socks5://HOST:PORT", with "USER:PASSWORD@" before HOST where it wants them',
  );
}

/** `tmk_<id>_<secret>_<coordinator fingerprint>`. Throws UserError 4, without the key. */
export function joinKey(text: string): JoinKey {
  const match = /^tmk_([a-z2-7]+)_([a-z2-7]+)_([a-z2-7]{26})$/.exec(text);
  const [, id, , fingerprint] = match ?? [];
  if (id !== undefined && fingerprint !== undefined && text.length <= MAX_KEY_LENGTH) return { id, text, fingerprint };
  throw new UserError(
    EXIT.keyRefused,
    'The join key is malformed: a whole one looks like "tmk_<id>_<secret>_<fingerprint>"; copy it again from the coordinator\'s "key create"',
  );
}
