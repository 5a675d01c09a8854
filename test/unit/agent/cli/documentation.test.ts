/** Every command line of the agent that README.md and docs/ show has to be one that the agent takes. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parseArguments } from "../../../../agent/cli/program.ts";

const ROOT = join(import.meta.dirname, "../../../..");
const FILES = ["README.md", "CONTRIBUTING.md", "docs/quick_start.md", "docs/troubleshooting.md"];
/** A whole key where the text has `tmk_...`. */
const KEY = "tmk_oeumxl3g_l7aerdih267xlyjtvtpn6rgq563j64s2_zdbfrp6k3zx37x5cexnk4zwfym";
/** What OpenSSH puts in before it runs a ProxyCommand. */
const SSH_TOKENS: Readonly<Record<string, string>> = { "%h": "nas", "%p": "22" };

const shown = FILES.flatMap((file) => {
  const text = readFileSync(join(ROOT, file), "utf8");
  // Of code alone: a block's lines, or what stands between backticks, perhaps over the end of a line.
  const blocks = [...text.matchAll(/^```\w*\n([\s\S]*?)^```/gm)].flatMap(([, block = ""]) => block.split("\n"));
  const spans = [...text.replace(/^```[\s\S]*?^```/gm, "").matchAll(/`([^`]+)`/g)].map(([, span = ""]) =>
    span.replaceAll("\n", " "),
  );
  return [...blocks, ...spans].flatMap((line) => commandsIn(line).map((words) => ({ where: file, words })));
});

/** The words after the program's name, of each time that a line of shell runs it. */
function commandsIn(line: string): string[][] {
  const found: string[][] = [];
  // A name, not a part of a path or of another name: ./tunnelmesh-agent is one, dist/tunnelmesh-agent and tunnelmesh-agent.1 are not.
  for (const match of line.matchAll(/(?<=^|[\s"'])(?:\.\/)?tunnelmesh-agent(?=\s|["']|$)/g)) {
    const quote = /^["']/.exec(line.slice(Math.max(0, match.index - 1)))?.[0];
    const rest = line.slice(match.index + match[0].length).split(quote ?? "\n")[0] ?? "";
    // A comment, or the next command.
    const command = rest.split(/\s#\s|\s*(?:\||&&|;|>)\s*/)[0] ?? "";
    const words = command.split(/\s+/).filter((word) => word !== "");
    // The name alone is the program, or its service, spoken of.
    if (words.length > 0) found.push(words);
  }
  return found;
}

const filled = (word: string): string => SSH_TOKENS[word] ?? word.replace("tmk_...", KEY);

test("the text shows commands of many kinds", () => {
  const kinds = new Set(shown.map(({ words }) => words[0]));
  expect(shown.length).toBeGreaterThan(25);
  for (const kind of ["up", "service", "forward", "socks", "nc", "status", "why", "completion", "jump-key"]) {
    expect(kinds).toContain(kind);
  }
});

test.each(shown.map((one) => [one.where, one.words.join(" "), one] as const))("%s: %s", (_where, _line, { words }) => {
  const parsed = parseArguments(words.map(filled), {});
  expect("error" in parsed ? parsed.error : "").toBe("");
});
