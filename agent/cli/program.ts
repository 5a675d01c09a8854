/**
 * The command line: argv, environment and configuration file in, one typed invocation or one error out. Nothing is started or printed here.
 *
 * Contradictions between options are found too, with exit code 78; single values that make no sense are usage errors, code 2.
 */
import { type Command, CommanderError } from "commander";
import { EXIT, type ExitCode, UserError, withoutKeys } from "../state/user_error.ts";
import { createProgram, HELP_WIDTH } from "./commands.ts";
import type { Invocation } from "./invocation.ts";
import { type Environment, type FindConfigFile, readSettings } from "./settings.ts";

export type Parsed = Invocation | { readonly error: string; readonly exitCode: ExitCode };

/** @param argv without the program's own name */
export function parseArguments(
  argv: readonly string[],
  env: Environment,
  findConfigFile: FindConfigFile = () => undefined,
): Parsed {
  let found: Invocation | undefined;
  let text = "";
  const program = createProgram((command, invoke) => {
    readSettings(command, env, findConfigFile);
    found = invoke();
  });
  const output = {
    getOutHelpWidth: () => HELP_WIDTH,
    getErrHelpWidth: () => HELP_WIDTH,
    writeOut: (part: string) => {
      text += part;
    },
    writeErr: (part: string) => {
      text += part;
    },
  };
  for (const command of withCommandsOf(program)) command.exitOverride().configureOutput(output);
  try {
    program.parse([...argv], { from: "user" });
  } catch (error) {
    if (error instanceof UserError) return { error: error.message, exitCode: error.exitCode };
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === "commander.version") return { command: "version", options: { json: false } };
    if (error.exitCode === 0) return { command: "help", options: { text } };
    // A command alone prints its help as an error; anything else is one line and where to look.
    const message = error.code === "commander.help" ? text : asMessage(error.message);
    return { error: withoutKeys(message.trimEnd()), exitCode: EXIT.usage };
  }
  return found ?? { error: withoutKeys(text.trimEnd()), exitCode: EXIT.usage };
}

const withCommandsOf = (command: Command): Command[] => [command, ...command.commands.flatMap(withCommandsOf)];

/** Commander's "error: unknown option '--x'\n(Did you mean --y?)" in the form of our messages. */
function asMessage(message: string): string {
  const plain = message
    .replace(/^error: /, "")
    .replace(/\.(?=$|\n)/g, "")
    .replace(/\. /g, ": ")
    .replace(/\s*\n\s*/g, " ")
    .replaceAll("'", '"');
  return `${plain.charAt(0).toUpperCase()}${plain.slice(1)}; "tunnelmesh-agent --help" shows what is possible`;
}
