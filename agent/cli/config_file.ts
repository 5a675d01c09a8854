/**
 * The configuration file: where it is, and what is written in it, with the line of each setting. What the settings mean is settings.ts's.
 *
 *   url = "https://coordinator.example"
 *   name = "nas"
 *   udp-port = 41641
 *   no-websocket = true
 */
import { statSync } from "node:fs";
import { join } from "node:path";
import { parse, TomlError, type TomlTable, type TomlValue } from "smol-toml";
import { readIfPresent } from "../state/atomic_file.ts";
import { type Account, stateDirOf } from "../state/state_dir.ts";
import { EXIT, systemCode, UserError } from "../state/user_error.ts";

export const SYSTEM_CONFIG_FILE = "/etc/tunnelmesh/agent.toml";

export interface ConfigFile {
  readonly path: string;
  readonly text: string;
  /** Nobody but its owner may read it. */
  readonly isPrivate: boolean;
}

export interface Setting {
  readonly name: string;
  readonly value: TomlValue;
  readonly line: number;
}

export type ParsedConfig =
  | { readonly ok: true; readonly settings: readonly Setting[] }
  | { readonly ok: false; readonly message: string };

export function parseConfigFile({ path, text }: ConfigFile): ParsedConfig {
  let table: TomlTable;
  try {
    table = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    // The message goes on with a picture of the place.
    const what = error.message.replace(/^Invalid TOML document: /, "").split("\n")[0] ?? "";
    return { ok: false, message: `${path}, line ${error.line}: this is not TOML: ${what}` };
  }
  const settings = Object.entries(table).map(([name, value]) => ({ name, value, line: lineOf(text, name) }));
  return { ok: true, settings };
}

/** The parser keeps no places. Settings are not nested, so a key begins its line, bare or in quotes, or is the name of a table. */
function lineOf(text: string, name: string): number {
  const lines = text.split("\n");
  const begins = (line: string): boolean => {
    const rest = line.trimStart().replace(/^\[{1,2}\s*/, "");
    return [name, `"${name}"`, `'${name}'`].some(
      (key) => rest.startsWith(key) && /^\s*[=.\]]/.test(rest.slice(key.length)),
    );
  };
  return lines.findIndex(begins) + 1;
}

/**
 * The file named by `--config`; else agent.toml in the state directory; else, for an agent of root's in its usual place, that of the system. A
 * second agent, with a state directory of its own, has nothing to do with the system's file.
 */
export function findConfigFile(
  choice: { readonly config?: string; readonly stateDir?: string },
  account: Account,
): ConfigFile | undefined {
  if (choice.config !== undefined) {
    const file = readConfigFile(choice.config);
    if (file !== undefined) return file;
    throw new UserError(EXIT.badConfiguration, `The file ${choice.config} of --config does not exist`);
  }
  const isSystems = account.uid === 0 && choice.stateDir === undefined;
  return (
    readIfAllowed(join(stateDirOf(choice.stateDir, account), "agent.toml")) ??
    (isSystems ? readIfAllowed(SYSTEM_CONFIG_FILE) : undefined)
  );
}

/** A file that nobody named, in a directory that is not ours: whoever needs the directory says better what is wrong. */
function readIfAllowed(path: string): ConfigFile | undefined {
  try {
    return readConfigFile(path);
  } catch (error) {
    const code = error instanceof UserError ? systemCode(error.cause) : undefined;
    if (code === "EACCES" || code === "EPERM" || code === "ENOTDIR") return undefined;
    throw error;
  }
}

function readConfigFile(path: string): ConfigFile | undefined {
  const text = readIfPresent(path);
  return text === undefined ? undefined : { path, text, isPrivate: (statSync(path).mode & 0o077) === 0 };
}
