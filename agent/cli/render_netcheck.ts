/** `netcheck` for people: the verdict first, then what it rests on. */
import type { Netcheck, NatStatus } from "../local/contract.ts";
import { printable } from "../log.ts";
import { natWords, type View } from "./render.ts";

export function renderNetcheck(result: Netcheck, view: View): string {
  const { ipv4, ipv6, portMapping } = result;
  const yes = (text: string): string => view.paint("green", text);
  const no = (text: string): string => view.paint("red", text);
  const verdict = (value: boolean | null, positive: string, negative: string): string =>
    value === null ? "not tested" : value ? yes(positive) : no(negative);
  const rows: [string, string][] = [
    ["UDP", result.udp ? yes("works") : no("blocked")],
    ["IPv4", ipv4 === null ? "not available" : natWords(ipv4)],
    ...(ipv4 === null ? [] : mappingRows(ipv4, verdict)),
    [
      "IPv6",
      ipv6.available ? `available${ipv6.publicAddress === null ? "" : ` as ${ipv6.publicAddress}`}` : "not available",
    ],
    [
      "Port mapping",
      `UPnP ${verdict(portMapping.upnp, "works", "no answer")}, NAT-PMP ${verdict(portMapping.natPmp, "works", "no answer")}, PCP ${verdict(portMapping.pcp, "works", "no answer")}`,
    ],
    ...(portMapping.address == null || portMapping.protocol == null
      ? []
      : ([["  mapped", `${printable(portMapping.address)} by ${printable(portMapping.protocol)}`]] as [
          string,
          string,
        ][])),
    ...(portMapping.note == null ? [] : ([["  note", printable(portMapping.note)]] as [string, string][])),
    ["SSH", verdict(result.ssh, "reachable", "not reachable")],
    ["WebSocket", verdict(result.websocket, "reachable", "not reachable")],
    ["Proxy", result.proxy === null ? "none" : printable(result.proxy)],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return [
    view.paint("bold", printable(result.summary)),
    "",
    ...rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`),
    "",
  ].join("\n");
}

function mappingRows(
  ipv4: NonNullable<Netcheck["ipv4"]>,
  verdict: (value: boolean | null, positive: string, negative: string) => string,
): [string, string][] {
  return [
    ["  mapping", ipv4.mapping === "none" ? "none, the address is its own" : (ipv4.mapping ?? "not known")],
    ["  filtering", ipv4.filtering ?? "not known"],
    ["  hairpin", verdict(ipv4.hairpin, "works", "does not work")],
    ...memoryRows(ipv4),
  ];
}

/** How long the router remembers a flow that nobody uses, once that is known. */
function memoryRows({ mappingLifetimeSeconds: stood, mappingForgottenSeconds: fell }: NatStatus): [string, string][] {
  if (stood == null) return [];
  if (fell == null) return [["  memory", `idle flows live for ${stood} s at least`]];
  return [["  memory", `idle flows live for ${stood === 0 ? "less than" : `${stood} to`} ${fell} s`]];
}
