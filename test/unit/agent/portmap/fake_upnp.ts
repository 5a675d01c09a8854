/** The HTTP side of fake_gateway.ts: a description, and calls of WANIPConnection. */
import { utf8, utf8Text } from "../../../../shared/bytes.ts";
import type { GatewayOptions } from "./fake_gateway.ts";

/** @param map makes the mapping, or removes it for a lease of -1; gives the external port */
export function gatewayResponse(
  request: Uint8Array,
  options: GatewayOptions,
  map: (port: number, lease: number) => number,
): { readonly asked: string; readonly response: { readonly status: number; readonly body: string } } {
  const text = utf8Text(request) ?? "";
  const version = options.version ?? 2;
  const type = `urn:schemas-upnp-org:service:WANIPConnection:${version}`;
  if (text.startsWith("GET")) {
    const body = `<root><device><service><serviceType>${type}</serviceType><controlURL>/ctl</controlURL></service></device></root>`;
    return { asked: "description", response: { status: 200, body } };
  }
  const action = /#(\w+)"/.exec(text)?.[1] ?? "";
  const field = (name: string): string => new RegExp(`<${name}>([^<]*)<`).exec(text)?.[1] ?? "";
  const answer = (fields: string) => ({
    status: 200,
    body: envelope(`<u:${action}Response>${fields}</u:${action}Response>`),
  });
  const refuse = (code: number) => ({
    status: 500,
    body: envelope(`<s:Fault><detail><UPnPError><errorCode>${code}</errorCode></UPnPError></detail></s:Fault>`),
  });
  const port = Number(field("NewExternalPort"));
  const lease = Number(field("NewLeaseDuration"));
  if (action === "GetExternalIPAddress") {
    const ip = options.externalIp ?? "198.51.100.10";
    return { asked: action, response: answer(`<NewExternalIPAddress>${ip}</NewExternalIPAddress>`) };
  }
  if (action === "DeletePortMapping") {
    map(port, -1);
    return { asked: `${action} ${port}`, response: answer("") };
  }
  const asked = `${action} ${port} ${lease}`;
  if (options.fault !== undefined) return { asked, response: refuse(options.fault) };
  if (action === "AddAnyPortMapping" && version === 1) return { asked, response: refuse(401) };
  if (options.leaseFault !== undefined && lease > 0) return { asked, response: refuse(options.leaseFault) };
  if (action === "AddPortMapping" && options.taken?.includes(port) === true) return { asked, response: refuse(718) };
  return { asked, response: answer(`<NewReservedPort>${map(port, lease)}</NewReservedPort>`) };
}

export const encodeResponse = ({ status, body }: { readonly status: number; readonly body: string }): Uint8Array =>
  utf8(`HTTP/1.1 ${status} X\r\nContent-Length: ${utf8(body).length}\r\n\r\n${body}`);

const envelope = (content: string): string =>
  `<s:Envelope xmlns:s="s" xmlns:u="u"><s:Body>${content}</s:Body></s:Envelope>`;
