/**
 * Options that no flag has set: from the environment, TUNNELMESH_<OPTION>, then from the configuration file. A flag wins over the environment,
 * and that over the file.
 *
 * The file belongs to `up`. Other commands take from it only which agent is meant, and let `up` complain about the rest: a file with a mistake
 * must not keep anybody from `status` and `down`.
 */
import { type Command, InvalidArgumentError, type Option } from "commander";
import { EXIT, UserError, withoutKeys } from "../state/user_error.ts";
import { type ConfigFile, parseConfigFile, type Setting } from "./config_file.ts";
import * as values from "./values.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

/** The file that these options, flags and environment already applied, lead to. Throws UserError for one that was named and is not there. */
export type FindConfigFile = (choice: {
  readonly config?: string;
  readonly stateDir?: string;
}) => ConfigFile | undefined;

/** An argument of `up` that can stand in the environment and the file as well. */
const URL_ATTRIBUTE = "url";
const AGENT_CHOICE: ReadonlySet<string> = new Set(["state-dir", "socket"]);

export function readSettings(command: Command, env: Environment, findConfigFile: FindConfigFile): void {
  readEnvironment(command, env);
  const file = command.options.some(({ long }) => long === "--config") ? findConfigFile(command.opts()) : undefined;
  if (file !== undefined) applyFile(command, file);
  // Not as defaults, which the help would print.
  for (const option of command.options) {
    if (isSwitch(option) && command.getOptionValue(option.attributeName()) === undefined) {
      command.setOptionValue(option.attributeName(), false);
    }
  }
}

/** An empty variable counts as none. */
function readEnvironment(command: Command, env: Environment): void {
  const isSet = setBefore(command);
  const textOf = (name: string): string | undefined => env[variableOf(name)] || undefined;
  for (const option of command.options) {
    const text = textOf(nameOf(option));
    if (text === undefined || isSet(option.attributeName())) continue;
    set(command, option.attributeName(), environmentValue(option, text), "env");
  }
  const url = textOf(URL_ATTRIBUTE);
  if (url !== undefined && takesUrl(command)) set(command, URL_ATTRIBUTE, url, "env");
}

function applyFile(command: Command, file: ConfigFile): void {
  const isWhole = command.name() === "up";
  const parsed = parseConfigFile(file);
  if (!parsed.ok && isWhole) throw new UserError(EXIT.badConfiguration, parsed.message);
  const isSet = setBefore(command);
  for (const setting of parsed.ok ? parsed.settings : []) {
    if (!isWhole && !AGENT_CHOICE.has(setting.name)) continue;
    const option = command.options.find((candidate) => nameOf(candidate) === setting.name);
    if (setting.name === URL_ATTRIBUTE) {
      if (!isSet(URL_ATTRIBUTE)) set(command, URL_ATTRIBUTE, textValue(setting, file), "config");
    } else if (option === undefined || setting.name === "config") {
      throw wrong(file, setting, 'there is no such option; "tunnelmesh-agent help up" lists them');
    } else {
      const value = fileValue(option, setting, file);
      if (!isSet(option.attributeName())) set(command, option.attributeName(), value, "config");
    }
  }
}

/** What wins over the next source, as it is before that one is read. A key in one place also wins over a key file in another. */
function setBefore(command: Command): (attribute: string) => boolean {
  const attributes = [...command.options.map((option) => option.attributeName()), URL_ATTRIBUTE];
  const sources = new Map(attributes.map((name) => [name, command.getOptionValueSource(name)]));
  const has = (name: string): boolean => ["cli", "env"].includes(sources.get(name) ?? "");
  return (name) => has(name) || ((name === "key" || name === "keyFile") && (has("key") || has("keyFile")));
}

const set = (command: Command, attribute: string, value: unknown, source: "env" | "config"): void =>
  void command.setOptionValueWithSource(attribute, value, source);

const takesUrl = (command: Command): boolean =>
  command.registeredArguments.some((each) => each.name() === URL_ATTRIBUTE);

/** "udp-port", "no-direct": as on the command line, and as in the file. */
const nameOf = (option: Option): string => (option.long ?? "").slice(2);
const variableOf = (name: string): string => `TUNNELMESH_${name.replaceAll("-", "_").toUpperCase()}`;

/** Takes no value. (`Option.isBoolean` leaves out `--no-...`.) */
const isSwitch = (option: Option): boolean => !option.required && !option.optional;

function environmentValue(option: Option, text: string): unknown {
  try {
    // Of `--no-direct`, "1" means that `direct` is false.
    if (isSwitch(option)) return values.truth(text) !== option.negate;
    return parsed(option, text, undefined);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    const variable = variableOf(nameOf(option));
    throw new UserError(EXIT.usage, `${variable} has the value "${withoutKeys(text)}": ${asReason(error.message)}`);
  }
}

function fileValue(option: Option, setting: Setting, file: ConfigFile): unknown {
  const { value } = setting;
  if (isSwitch(option)) {
    if (typeof value !== "boolean") throw wrong(file, setting, "it must be true or false");
    return value !== option.negate;
  }
  if (setting.name === "key" && !file.isPrivate) {
    throw wrong(file, setting, `others may read this file; run "chmod 600 ${file.path}", or use key-file`);
  }
  const texts = Array.isArray(value) ? value.map((each) => textValue({ ...setting, value: each }, file)) : [];
  try {
    if (!Array.isArray(value)) return parsed(option, textValue(setting, file), undefined);
    if (!isRepeatable(option)) throw wrong(file, setting, "it takes one value, not a list");
    return texts.reduce<unknown>((before, text) => parsed(option, text, before), undefined);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    throw wrong(file, setting, asReason(error.message));
  }
}

const parsed = (option: Option, text: string, before: unknown): unknown =>
  option.parseArg === undefined ? text : option.parseArg(text, before);

const isRepeatable = ({ defaultValue }: Option): boolean => Array.isArray(defaultValue);

function textValue(setting: Setting, file: ConfigFile): string {
  const { value } = setting;
  if (typeof value === "string" || typeof value === "number") return String(value);
  throw wrong(file, setting, "it must be a text or a number");
}

const wrong = (file: ConfigFile, { name, line }: Setting, why: string): UserError =>
  new UserError(EXIT.badConfiguration, `${file.path}, line ${line}: "${name}" cannot be used: ${why}`);

const asReason = (message: string): string => {
  const plain = message.replace(/\.$/, "");
  return `${plain.charAt(0).toLowerCase()}${plain.slice(1)}`;
};
