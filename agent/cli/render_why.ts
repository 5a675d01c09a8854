/** `why` for people: the path, since when, what stands against a better one, what would help. */
import type { WhyAnswer } from "../local/contract.ts";
import { printable } from "../log.ts";
import { ago, historyLines, milliseconds, pathStyle, pathWords, type View } from "./render.ts";

const HISTORY_LINES = 5;

export function renderWhy(answer: WhyAnswer, view: View): string {
  const { path, nat } = answer;
  const lines = [`${view.paint("bold", printable(answer.name))}: ${pathSentence(answer, view)}`, printable(answer.why)];
  if (path !== null && path.localAddress !== null && path.remoteAddress !== null) {
    lines.push(`Packets go from ${path.localAddress} to ${path.remoteAddress}`);
  }
  if (nat !== undefined) lines.push(`NAT here: ${nat.local ?? "unknown"}; NAT there: ${nat.remote ?? "unknown"}`);
  // What the sentence has said already is not said twice.
  const better = answer.better.filter(({ reason }) => !answer.why.toLowerCase().includes(reason.toLowerCase()));
  if (better.length > 0) {
    lines.push("", "Why not better:");
    for (const { kind, reason } of better) lines.push(`  ${kind}: ${printable(reason)}`);
  }
  if (answer.help.length > 0) {
    lines.push("", "What would help:");
    for (const help of answer.help) lines.push(`  ${printable(help)}`);
  }
  if (answer.history.length > 0) lines.push("", "Before:", ...historyLines(answer.history, view, HISTORY_LINES));
  return `${lines.join("\n")}\n`;
}

function pathSentence({ path, online }: WhyAnswer, view: View): string {
  if (path === null) return online ? "no path at present" : "offline";
  const rtt = path.rttMs === null ? "" : `, ${milliseconds(path.rttMs)}`;
  return `${view.paint(pathStyle(path.kind), pathWords(path))} for ${ago(path.since, view)}${rtt}`;
}
