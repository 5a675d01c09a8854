/**
 * Which words may come next on a command line: of commands, options, their values, and peers. Told to the scripts of completion_scripts.ts, a
 * line each: the word, a tab, what it means.
 */
import type { Argument, Command, Option } from "commander";
import type { PeerStatus } from "../local/contract.ts";
import { printable } from "../log.ts";

/** In place of words: the shell knows better what files there are. */
export const ASK_FOR_FILES = ":files";

export interface Suggestion {
  readonly word: string;
  readonly meaning: string;
}

/** Where the cursor is, as far as it matters. */
export interface Place {
  readonly command: Command;
  /** What the last word is the value of; undefined: it may be an option, a command or an argument. */
  readonly value: Option | undefined;
  /** Number of arguments before the cursor. */
  readonly argument: number;
  /** After `--`, nothing is an option. */
  readonly isAfterDashes: boolean;
  /** Options with a value that stand before the cursor, by their long names. */
  readonly given: ReadonlyMap<string, string>;
  /** The word that is being typed; of `--tun=o`, what follows the "=". */
  readonly current: string;
  /** `--tun=`, in front of every suggestion. */
  readonly prefix: string;
}

/** @param words without the program's name; the last one is being typed, and may be empty */
export function placeOf(program: Command, words: readonly string[]): Place {
  const given = new Map<string, string>();
  let command = program;
  let value: Option | undefined;
  let argument = 0;
  let isAfterDashes = false;
  for (const word of words.slice(0, -1)) {
    if (value !== undefined) {
      given.set(value.long ?? "", word);
      value = undefined;
    } else if (!isAfterDashes && word === "--") isAfterDashes = true;
    else if (!isAfterDashes && word.startsWith("-")) {
      const [name = "", text] = splitOnce(word);
      const option = optionOf(command, name);
      if (text !== undefined) given.set(name, text);
      else if (option?.required === true) value = option;
    } else {
      const next = argument === 0 ? command.commands.find((each) => each.name() === word) : undefined;
      if (next === undefined) argument++;
      else command = next;
    }
  }
  const last = words.at(-1) ?? "";
  const [name = "", text] = splitOnce(last);
  if (value === undefined && !isAfterDashes && name.startsWith("--") && text !== undefined) {
    const option = optionOf(command, name);
    return { command, value: option, argument, isAfterDashes, given, current: text, prefix: `${name}=` };
  }
  return { command, value, argument, isAfterDashes, given, current: last, prefix: "" };
}

/** Undefined: file names. */
export function suggestionsAt(place: Place, peers: readonly PeerStatus[]): readonly Suggestion[] | undefined {
  const { command, value, current, prefix } = place;
  const all = value === undefined ? wordsAt(place, peers) : valuesOf(value, peers);
  if (all === undefined) return undefined;
  const fitting = all.filter(({ word }) => word.startsWith(current));
  // "-" and "--" alone ask for options; an empty word does not, as long as there is something else to say.
  const isForOptions = value === undefined && !place.isAfterDashes && (current.startsWith("-") || all.length === 0);
  const options = isForOptions ? optionsOf(command, place).filter(({ word }) => word.startsWith(current)) : [];
  return [...fitting, ...options].map(({ word, meaning }) => ({ word: prefix + word, meaning }));
}

export const suggestionLine = ({ word, meaning }: Suggestion): string => `${printable(word)}\t${printable(meaning)}`;

function wordsAt({ command, argument }: Place, peers: readonly PeerStatus[]): readonly Suggestion[] {
  if (command.commands.length > 0 && argument === 0) {
    return command
      .createHelp()
      .visibleCommands(command)
      .map((each) => ({ word: each.name(), meaning: each.description() }));
  }
  const next: Argument | undefined = command.registeredArguments[argument];
  if (next?.argChoices !== undefined) return next.argChoices.map((word) => ({ word, meaning: "" }));
  if (next?.name() === "remote") return peerSuggestions(peers, "", ":");
  return next !== undefined && ["peer", "name"].includes(next.name()) ? peerSuggestions(peers) : [];
}

function valuesOf(option: Option, peers: readonly PeerStatus[]): readonly Suggestion[] | undefined {
  if (option.argChoices !== undefined) return option.argChoices.map((word) => ({ word, meaning: "" }));
  if (/<(?:file|dir|path)>/.test(option.flags)) return undefined;
  if (option.long !== "--for") return [];
  return [
    { word: "joined", meaning: "this machine is in the mesh" },
    ...peerSuggestions(peers, "peer="),
    ...peerSuggestions(peers, "direct="),
  ];
}

const peerSuggestions = (peers: readonly PeerStatus[], prefix = "", suffix = ""): readonly Suggestion[] =>
  peers.map(({ name, path, online }) => ({
    word: prefix + name + suffix,
    meaning:
      path === null ? (online ? "online" : "offline") : path.kind === "direct" ? "direct" : `relayed by ${path.kind}`,
  }));

const optionsOf = (command: Command, { given }: Place): readonly Suggestion[] =>
  command.options
    .filter(({ long, hidden, defaultValue }) => !hidden && (Array.isArray(defaultValue) || !given.has(long ?? "")))
    .map(({ long, description }) => ({ word: long ?? "", meaning: description }));

const optionOf = (command: Command, name: string): Option | undefined =>
  command.options.find(({ long, short }) => long === name || short === name);

const splitOnce = (word: string): readonly string[] => {
  const at = word.indexOf("=");
  return at < 0 ? [word] : [word.slice(0, at), word.slice(at + 1)];
};
