/**
 * UPnP control of a WAN connection service: what a description says of it, our calls, and the answers.
 *
 * Services: WANIPConnection:1 and :2 (UPnP IGD v1 and v2) and WANPPPConnection:1, whose calls are the same.
 */
import { canonicalIp } from "../../shared/address.ts";
import { encodeRequest, type HttpResponse, isPort, type Url } from "./http.ts";
import { gatewayUrl } from "./ssdp.ts";
import { elementsNamed, escapeXml, parseXml, textOf } from "./xml.ts";

const SERVICE = /^urn:schemas-upnp-org:service:(?:WANIPConnection:([12])|WANPPPConnection:1)$/;
/** A router with more connections than this to choose from is none. */
const MAX_SERVICES = 4;

/** UPnP errors (WANIPConnection:2 §2.5, Device Architecture §3.2.2) that call for something else than giving up. */
export const FAULT = {
  invalidAction: 401,
  invalidArguments: 402,
  actionFailed: 501,
  optionalActionNotImplemented: 602,
  notAuthorized: 606,
  conflict: 718,
  onlyPermanentLeases: 725,
} as const;

export interface WanService {
  readonly type: string;
  readonly control: Url;
  /** Knows AddAnyPortMapping. */
  readonly isVersion2: boolean;
}

/** The services of a description that can map ports, newer kinds first. Control URLs outside the gateway are left out. */
export function decodeDescription(body: string, location: Url): readonly WanService[] {
  const root = parseXml(body);
  if (root === undefined) return [];
  const declared = textOf(root, "URLBase");
  const base = (declared === undefined || declared === "" ? undefined : gatewayUrl(declared, location.ip)) ?? location;
  const services = elementsNamed(root, "service").flatMap((service): WanService[] => {
    const type = textOf(service, "serviceType") ?? "";
    const match = SERVICE.exec(type);
    const control = resolve(textOf(service, "controlURL") ?? "", base);
    return match === null || control === undefined ? [] : [{ type, control, isVersion2: match[1] === "2" }];
  });
  return services.toSorted((a, b) => Number(b.isVersion2) - Number(a.isVersion2)).slice(0, MAX_SERVICES);
}

export type SoapArguments = Readonly<Record<string, string | number>>;

export function encodeCall(service: WanService, action: string, parameters: SoapArguments): Uint8Array {
  const fields = Object.entries(parameters).map(([name, value]) => `<${name}>${escapeXml(String(value))}</${name}>`);
  const body = `<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:${action} xmlns:u="${service.type}">${fields.join("")}</u:${action}></s:Body></s:Envelope>\r\n`;
  const headers = { "Content-Type": 'text/xml; charset="utf-8"', SOAPAction: `"${service.type}#${action}"` };
  return encodeRequest("POST", service.control, headers, body);
}

export type SoapAnswer =
  /** `field` is the text of the answer's element of that name. */
  | { readonly ok: true; readonly field: (name: string) => string | undefined }
  /** The UPnP error, 0 when the router gave none. */
  | { readonly ok: false; readonly fault: number; readonly text: string };

/** Undefined when this is no answer to the call. */
export function decodeAnswer(response: HttpResponse, action: string): SoapAnswer | undefined {
  const root = parseXml(response.body);
  const [body] = root === undefined ? [] : elementsNamed(root, "Body");
  if (body === undefined) return undefined;
  const [answer] = elementsNamed(body, `${action}Response`);
  if (response.status === 200 && answer !== undefined) return { ok: true, field: (name) => textOf(answer, name) };
  const [fault] = elementsNamed(body, "Fault");
  if (fault === undefined) return undefined;
  const code = textOf(fault, "errorCode") ?? "";
  const text = (textOf(fault, "errorDescription") ?? "").slice(0, 100);
  return { ok: false, fault: /^\d{3}$/.test(code) ? Number(code) : 0, text };
}

/** An IPv4 address out of an answer. */
export const ipField = (text: string | undefined): string | undefined =>
  text === undefined || text.includes(":") ? undefined : canonicalIp(text);

export function portField(text: string | undefined): number | undefined {
  const port = text !== undefined && /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return isPort(port) ? port : undefined;
}

/** RFC 3986 §5, for what devices write: a whole URL, a path, or a name beside the description. */
function resolve(text: string, base: Url): Url | undefined {
  if (/^[a-z][a-z0-9+.-]*:/i.test(text)) return gatewayUrl(text, base.ip);
  if (text === "" || text.startsWith("//")) return undefined;
  const folder = base.path.slice(0, base.path.lastIndexOf("/") + 1);
  return gatewayUrl(`http://${base.ip}:${base.port}${text.startsWith("/") ? "" : folder}${text}`, base.ip);
}
