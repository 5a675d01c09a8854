/**
 * The manual page, from the same commands, options and examples that `--help` shows (man(7)). Written to docs/ by scripts/man.ts; a test
 * compares the two.
 */
import type { Argument, Command, Option } from "commander";
import { SYSTEM_CONFIG_FILE } from "./config_file.ts";
import { EXAMPLES, EXIT_WORDS, examplesOf, SETTINGS_WORDS } from "./commands.ts";

/** Said once for all commands. */
const COMMON_OPTIONS: ReadonlySet<string> = new Set(["--config", "--state-dir", "--socket", "--json"]);

const FILES: readonly (readonly [string, string])[] = [
  ["/var/lib/tunnelmesh", "keys and state of an agent of root's"],
  ["$XDG_STATE_HOME/tunnelmesh, ~/.local/state/tunnelmesh", "the same for other users"],
  ["agent.toml", "in the state directory: options of up"],
  [SYSTEM_CONFIG_FILE, "the same for an agent of root's in its usual place"],
];

export function manPage(program: Command, version: string): string {
  const commands = leavesOf(program);
  const common = new Map(commands.flatMap(({ options }) => options.filter(isCommon).map((each) => [each.long, each])));
  return [
    `.TH TUNNELMESH-AGENT 1 "" "TunnelMesh ${version}" "User Commands"`,
    ".SH NAME",
    `tunnelmesh-agent ${DASH} ${text(decapitalized(program.description()))}`,
    ".SH SYNOPSIS",
    ...commands.flatMap((command) => [
      `.B ${text(nameOf(command))}`,
      text(`${argumentsOf(command)} [options]`.trim()),
      ".br",
    ]),
    ".SH DESCRIPTION",
    text(
      "Machines that join the same mesh reach each other by name and by stable addresses, over a direct and end-to-end encrypted UDP path wherever their routers allow one, and through the coordinator otherwise. The agent always says which path a peer has, and why not a better one.",
    ),
    ".PP",
    text(SETTINGS_WORDS),
    ".SH COMMANDS",
    ...commands.flatMap(commandSection),
    ".SH COMMON OPTIONS",
    ...[...common.values()].flatMap(optionLines),
    ".SH FILES",
    ...FILES.flatMap(([path, meaning]) => [".TP", `.I ${text(path)}`, text(meaning)]),
    ".SH EXIT STATUS",
    ...Object.entries(EXIT_WORDS).flatMap(([code, words]) => [".TP", `.B ${code}`, text(words)]),
    ".SH EXAMPLES",
    ...EXAMPLES.flatMap(([command, meaning]) => [".TP", `.B ${text(command)}`, text(meaning)]),
    ".SH SEE ALSO",
    ".BR ssh (1),",
    ".BR systemd.service (5),",
    ".BR resolvectl (1)",
    "",
  ].join("\n");
}

/** In roff "-" is a hyphen, which cannot be pasted into a shell. */
const DASH = "\\-";

function commandSection(command: Command): string[] {
  const { options, registeredArguments } = command;
  const examples = examplesOf.get(command) ?? [];
  return [
    `.SS ${quoted(`${nameOf(command).replace(/^tunnelmesh-agent /, "")} ${argumentsOf(command)}`.trim())}`,
    `${text(capitalized(command.description()))}.`,
    ...registeredArguments.filter(({ description }) => description !== "").flatMap(argumentLines),
    ...options.filter((option) => !isCommon(option)).flatMap(optionLines),
    ...(examples.length === 0 ? [] : [".PP", "Example:", ".nf", ...examples.map((each) => text(`    ${each}`)), ".fi"]),
  ];
}

const argumentLines = (argument: Argument): string[] => [
  ".TP",
  `.I ${text(argument.name())}`,
  text(argument.description),
];

function optionLines(option: Option): string[] {
  const choices = option.argChoices === undefined ? [] : [`one of ${option.argChoices.join(", ")}`];
  const value: unknown = option.defaultValue;
  const isTold = !option.negate && ["string", "number"].includes(typeof value);
  const preset = option.defaultValueDescription ?? (isTold ? String(value) : undefined);
  const more = [...choices, ...(preset === undefined ? [] : [`default: ${preset}`])];
  return [
    ".TP",
    `.B ${text(option.flags)}`,
    text(option.description + (more.length === 0 ? "" : ` (${more.join("; ")})`)),
  ];
}

const isCommon = ({ long }: Option): boolean => COMMON_OPTIONS.has(long ?? "");

/** Commands that do something, in the order of `--help`. */
function leavesOf(command: Command): Command[] {
  const visible = command
    .createHelp()
    .visibleCommands(command)
    .filter((each) => each.name() !== "help");
  return visible.length === 0 ? [command] : visible.flatMap(leavesOf);
}

const nameOf = (command: Command): string =>
  command.parent === null ? command.name() : `${nameOf(command.parent)} ${command.name()}`;

const argumentsOf = (command: Command): string =>
  command.registeredArguments.map((each) => (each.required ? `<${each.name()}>` : `[${each.name()}]`)).join(" ");

/** man(7) and groff_char(7): what roff would take for its own. A line that begins with a dot or a quote would be a request. */
const text = (words: string): string =>
  words
    .replaceAll("\\", "\\e")
    .replaceAll("-", DASH)
    .replaceAll("'", "\\(aq")
    .replaceAll("~", "\\(ti")
    .replaceAll("^", "\\(ha")
    .replace(/^\./, "\\&.");

const quoted = (words: string): string => `"${text(words).replaceAll('"', '""')}"`;
const capitalized = (words: string): string => words.charAt(0).toUpperCase() + words.slice(1);
const decapitalized = (words: string): string => words.charAt(0).toLowerCase() + words.slice(1);
