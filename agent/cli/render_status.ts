/** `status` and `peers` for people: to be read in a second, so one line a peer and the reason last. */
import type { PeerStatus, Status } from "../local/contract.ts";
import { printable } from "../log.ts";
import { ago, type Cell, milliseconds, natWords, pathStyle, pathWords, table, type View } from "./render.ts";

export function renderStatus(status: Status, view: View): string {
  const { self, peers } = status;
  const lines = [
    `${view.paint("bold", printable(self.name ?? "not joined yet"))}  ${addresses(self, self.tun)}`,
    `Network      ${natWords(self.nat)}`,
    ...portMappingLines(self),
    `Coordinator  ${coordinatorWords(self.coordinator, view)}`,
    ...namesLines(self, peers),
    "",
  ];
  if (peers.length === 0) return [...lines, "No other machine has joined this mesh yet", ""].join("\n");
  const rows = byInterest(peers).map((peer): Cell[] => [
    { text: peer.name, style: "bold" },
    pathCell(peer),
    { text: peer.path?.rttMs === null || peer.path === null ? "" : milliseconds(peer.path.rttMs) },
    { text: peer.path === null ? "" : ago(peer.path.since, view) },
    { text: peer.nat ?? (peer.online ? "unknown" : "") },
    { text: peer.why },
  ]);
  const head = ["PEER", "PATH", "ROUND TRIP", "SINCE", "NAT", "WHY"];
  return [...lines, table(head, rows, view), "", summary(peers), ""].join("\n");
}

export function renderPeers(peers: readonly PeerStatus[], view: View): string {
  if (peers.length === 0) return "No other machine has joined this mesh yet\n";
  const rows = byInterest(peers).map((peer): Cell[] => [
    { text: peer.name, style: "bold" },
    peer.online ? { text: "online", style: "green" } : { text: "offline", style: "dim" },
    { text: peer.meshIPv4 ?? "none" },
    { text: peer.meshIPv6 ?? "none" },
    { text: peer.fingerprint },
  ]);
  return `${table(["PEER", "STATE", "IPV4", "IPV6", "FINGERPRINT"], rows, view)}\n`;
}

function pathCell(peer: PeerStatus): Cell {
  if (peer.trust === "blocked") return { text: "blocked", style: "red" };
  if (peer.trust === "changed") return { text: "key changed", style: "red" };
  if (peer.path !== null) return { text: pathWords(peer.path), style: pathStyle(peer.path.kind) };
  return peer.online ? { text: "none" } : { text: "offline", style: "dim" };
}

function addresses(self: Status["self"], tun: string | null): string {
  const known = [self.meshIPv4, self.meshIPv6].filter((address) => address !== null).map(printable);
  if (known.length === 0) return "without an address";
  return `${known.join("  ")}  ${tun === null ? "without a network device" : `on ${printable(tun)}`}`;
}

function coordinatorWords(coordinator: Status["self"]["coordinator"], view: View): string {
  const url = printable(coordinator.url);
  if (!coordinator.connected) {
    const why = coordinator.message ?? "it is tried again and again; direct paths go on";
    return `${view.paint("red", "not connected")} to ${url}: ${printable(why)}`;
  }
  return coordinator.rttMs === null ? `connected to ${url}` : `connected to ${url}, ${milliseconds(coordinator.rttMs)}`;
}

/** Only where there is a network device: without one, nobody expects other programs to know the names. */
function namesLines({ names, tun }: Status["self"], peers: readonly PeerStatus[]): string[] {
  if (names === undefined || tun === null) return [];
  const example = printable(peers[0]?.name ?? "nas");
  if (names.how !== null) {
    const means = names.how === "hosts file" ? "/etc/hosts" : names.how;
    const forms = `${names.isBareEnough ? `${example} or ` : ""}${example}.${names.domain}`;
    return [`Names        such as ${forms} work in all programs, through ${means}`];
  }
  const ask = names.server === null ? "" : `; ask with "dig @${names.server} ${example}.${names.domain}"`;
  return [`Names        ${printable(names.message ?? "not yet")}${ask}`];
}

function portMappingLines({ portMapping }: Status["self"]): string[] {
  if (portMapping === undefined) return [];
  const { protocol, address, note } = portMapping;
  if (note !== null) return [`Port mapping ${printable(note)}`];
  return protocol === null || address === null ? [] : [`Port mapping ${printable(address)} by ${printable(protocol)}`];
}

function summary(peers: readonly PeerStatus[]): string {
  const count = (test: (peer: PeerStatus) => boolean): number => peers.filter(test).length;
  const parts = [
    `${count((peer) => peer.path?.kind === "direct")} direct`,
    `${count((peer) => peer.path !== null && peer.path.kind !== "direct")} relayed`,
    `${count((peer) => peer.path === null && peer.online)} without a path`,
    `${count((peer) => peer.path === null && !peer.online)} offline`,
  ].filter((part) => !part.startsWith("0 "));
  return `${peers.length} ${peers.length === 1 ? "peer" : "peers"}: ${parts.join(", ")}`;
}

/** Peers with a path first, then those online, each by name. */
function byInterest(peers: readonly PeerStatus[]): PeerStatus[] {
  const rank = (peer: PeerStatus): number => (peer.path !== null ? 0 : peer.online ? 1 : 2);
  return peers.toSorted((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name, "en", { numeric: true }));
}
