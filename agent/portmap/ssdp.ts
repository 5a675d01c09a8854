/**
 * SSDP (UPnP Device Architecture 1.1 §1.3): the search for an internet gateway, and what of an answer matters to us: where the
 * description of the device is.
 *
 * An answer may name any URL. Ours must be plain HTTP on the gateway itself: a description is fetched from nobody else, so that no
 * machine of the LAN can send us to a third one.
 */
import { utf8, utf8Text } from "../../shared/bytes.ts";
import { isPort, type Url } from "./http.ts";

export const SSDP_GROUP = "239.255.255.250";
export const SSDP_PORT = 1900;

/** A device of version 2 answers to both, one of version 1 to the first only. */
const TARGETS = [
  "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
  "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
] as const;
/** Seconds over which devices may spread their answers. */
const MX = 1;
/** One datagram on any network; real answers have 300 to 500 bytes. */
const MAX_BYTES = 1500;
const MAX_PATH = 512;

/** The requests to send to one address, the group or the gateway. */
export const encodeSearches = (to: string): readonly Uint8Array[] =>
  TARGETS.map((target) =>
    utf8(
      `M-SEARCH * HTTP/1.1\r\nHOST: ${to}:${SSDP_PORT}\r\nMAN: "ssdp:discover"\r\nMX: ${MX}\r\nST: ${target}\r\n\r\n`,
    ),
  );

/** Where the gateway's description is; undefined for answers of other devices, and for those that name another machine. */
export function decodeSearchAnswer(bytes: Uint8Array, gateway: string): Url | undefined {
  const text = bytes.length > MAX_BYTES ? undefined : utf8Text(bytes);
  if (text === undefined || !/^HTTP\/1\.[01] 200\b/.test(text)) return undefined;
  const headers = new Map<string, string>();
  for (const line of text.split(/\r?\n/).slice(1)) {
    const colon = line.indexOf(":");
    if (colon > 0) headers.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  const target = headers.get("st") ?? "";
  if (!(TARGETS as readonly string[]).includes(target)) return undefined;
  return gatewayUrl(headers.get("location") ?? "", gateway);
}

/** Is this an announcement of a device that comes or goes? What it says is not read: it only calls for a look. */
export const isNotification = (bytes: Uint8Array): boolean =>
  bytes.length <= MAX_BYTES && utf8Text(bytes.subarray(0, 10))?.startsWith("NOTIFY * H") === true;

/** A URL on the gateway, spelled as its address; undefined for any other, and for characters that have no place in a request. */
export function gatewayUrl(text: string, gateway: string): Url | undefined {
  const match = /^http:\/\/([0-9.]{7,15})(?::(\d{1,5}))?(\/[!-~]*)?$/i.exec(text);
  const [, ip = "", port = "80", path = "/"] = match ?? [];
  if (match === null || ip !== gateway || !isPort(Number(port)) || path.length > MAX_PATH) return undefined;
  return { ip, port: Number(port), path };
}
