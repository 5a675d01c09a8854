/**
 * The agent's lines in the text of /etc/hosts: between two marks, after everything else, so that the lines of others come first and win.
 *
 * Text in, text out; who may write the file, and when, is not decided here (agent/driver/hosts_file.ts).
 */
import { addressesOf, MESH_DOMAIN, type Member } from "./zone.ts";

const BEGIN = "# BEGIN TunnelMesh: written by the agent, removed when it stops";
const END = "# END TunnelMesh";

export const hasBlock = (text: string): boolean => text.split("\n").includes(BEGIN);

/** The text with these members' lines in it, and no others of ours. Without members: as `withoutBlock`. */
export function withBlock(text: string, members: readonly Member[]): string {
  const others = withoutBlock(text);
  const taken = namesIn(others);
  const lines = members.flatMap((member) => {
    // A name that the machine knows already keeps its meaning.
    const full = `${member.name}.${MESH_DOMAIN}`;
    if (taken.has(full)) return [];
    const names = taken.has(member.name) ? full : `${full} ${member.name}`;
    return addressesOf(member).map((ip) => `${ip} ${names}`);
  });
  if (lines.length === 0) return others;
  const gap = others === "" || others.endsWith("\n") ? "" : "\n";
  return `${others}${gap}${[BEGIN, ...lines, END].join("\n")}\n`;
}

/** The text as it is without us. A block whose end somebody has cut off ends before the first line that is none of ours. */
export function withoutBlock(text: string): string {
  const kept: string[] = [];
  let isInside = false;
  for (const line of text.split("\n")) {
    if (line === BEGIN) isInside = true;
    else if (isInside && line === END) isInside = false;
    else {
      if (isInside && !isOurs(line)) isInside = false;
      if (!isInside) kept.push(line);
    }
  }
  return kept.join("\n");
}

/** An address, a name of the mesh, perhaps the same without its domain. */
const isOurs = (line: string): boolean => /^[0-9a-f.:]+ ([a-z0-9-]+)\.mesh(?: \1)?$/.test(line);

function namesIn(text: string): ReadonlySet<string> {
  const fields = text.split("\n").map((line) => (line.split("#")[0] ?? "").trim().split(/\s+/).slice(1));
  return new Set(fields.flat().map((name) => name.toLowerCase()));
}
