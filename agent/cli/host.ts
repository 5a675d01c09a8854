/** The process as the command line sees it, so that tests can be the terminal, the clock and the environment. */
import { hostname } from "node:os";
import { styleText } from "node:util";
import { type Account, currentAccount } from "../state/state_dir.ts";
import type { Pipes } from "./nc.ts";
import type { Environment } from "./settings.ts";

export type Style = "bold" | "dim" | "green" | "yellow" | "red";
/** Colours a text, or leaves it as it is. */
export type Paint = (style: Style, text: string) => string;

export interface Host {
  readonly env: Environment;
  readonly account: Account;
  readonly hostName: string;
  /** Width of the terminal; undefined when stdout is none, so that nothing is cut short in a file or a pipe. */
  readonly columns: () => number | undefined;
  /** Height of the terminal, as above. */
  readonly rows: () => number | undefined;
  readonly paint: Paint;
  out(text: string): void;
  err(text: string): void;
  /** Standard input and output as bytes. */
  pipes(): Pipes;
  unixMs(): number;
  /** Returns early, without an error, when `signal` aborts. */
  sleep(milliseconds: number, signal: AbortSignal): Promise<void>;
}

export const plain: Paint = (_style, text) => text;
// `validateStream: false`, since styleText would look at its own stdout instead of what we decided.
export const coloured: Paint = (style, text) => styleText(style, text, { validateStream: false });

/** https://no-color.org: any value that is not empty. */
export const wantsColour = (isTerminal: boolean, env: Environment): boolean =>
  isTerminal && (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb";

export function processHost(): Host {
  const { env, stdout, stderr } = process;
  const isTerminal = stdout.isTTY;
  return {
    env,
    account: currentAccount(env),
    hostName: hostname(),
    columns: () => (isTerminal ? stdout.columns : undefined),
    rows: () => (isTerminal ? stdout.rows : undefined),
    paint: wantsColour(isTerminal, env) ? coloured : plain,
    out: (text) => void stdout.write(text),
    err: (text) => void stderr.write(text),
    pipes: () => ({ input: process.stdin, output: stdout }),
    unixMs: () => Date.now(),
    sleep,
  };
}

export const sleep = (milliseconds: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
