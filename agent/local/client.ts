/** The command line's side of the local API. Every failure becomes a `UserError` with the exit code of the contract. */
import * as v from "valibot";
import type { RungWish } from "../../shared/wire/control.ts";
import type { ForwardSpec, ListenSpec } from "../state/forward_spec.ts";
import { EXIT, isExitCode, systemCode, systemReason, UserError } from "../state/user_error.ts";
import {
  type BenchEvent,
  BenchLine,
  type BenchOptions,
  ErrorAnswer,
  ListenLine,
  Netcheck,
  PathStatus,
  type PingEvent,
  PingLine,
  type PingOptions,
  Status,
  StopAnswer,
  TrustAnswer,
  WaitAnswer,
  type WaitCondition,
  WhyAnswer,
} from "./contract.ts";

/** Questions that the agent answers from memory: one that takes longer hangs. */
const ANSWER_TIMEOUT_MS = 5000;
/** `netcheck` sends tests and waits for their answers. */
/** The agent itself gives a switch ten seconds. */
const PATH_TIMEOUT_MS = 15_000;
const NETCHECK_TIMEOUT_MS = 60_000;

/** The agent ended while it was asked. */
const CUT_OFF: ReadonlySet<string> = new Set(["ECONNRESET", "EPIPE", "ConnectionClosed"]);

export class LocalClient {
  readonly #socketPath: string;
  readonly #notRunning: string;

  /** @param notRunning what to say when nobody answers on the socket */
  constructor(socketPath: string, notRunning: string) {
    this.#socketPath = socketPath;
    this.#notRunning = notRunning;
  }

  status(signal: AbortSignal): Promise<Status> {
    return this.#ask("GET", "status", undefined, Status, signal, ANSWER_TIMEOUT_MS);
  }

  why(name: string, signal: AbortSignal): Promise<WhyAnswer> {
    return this.#ask("POST", "why", { name }, WhyAnswer, signal, ANSWER_TIMEOUT_MS);
  }

  async wait(condition: WaitCondition, timeoutMs: number | undefined, signal: AbortSignal): Promise<boolean> {
    const limit = timeoutMs === undefined ? undefined : timeoutMs + ANSWER_TIMEOUT_MS;
    return (await this.#ask("POST", "wait", { condition, timeoutMs }, WaitAnswer, signal, limit)).reached;
  }

  netcheck(signal: AbortSignal): Promise<Netcheck> {
    return this.#ask("POST", "netcheck", {}, Netcheck, signal, NETCHECK_TIMEOUT_MS);
  }

  choosePath(peer: string, rung: RungWish, signal: AbortSignal): Promise<PathStatus> {
    return this.#ask("POST", "path", { peer, rung }, PathStatus, signal, PATH_TIMEOUT_MS);
  }

  /** The fingerprint that is trusted from here on. */
  async trust(name: string, signal: AbortSignal): Promise<string> {
    return (await this.#ask("POST", "trust", { name }, TrustAnswer, signal, ANSWER_TIMEOUT_MS)).fingerprint;
  }

  async block(name: string, signal: AbortSignal): Promise<void> {
    await this.#ask("POST", "block", { name }, v.looseObject({}), signal, ANSWER_TIMEOUT_MS);
  }

  /**
   * Begins the stop; returns the state directory whose lock tells when it is complete. Undefined: the agent ended so fast that its
   * answer was lost.
   */
  async stop(signal: AbortSignal): Promise<string | undefined> {
    try {
      return (await this.#ask("POST", "stop", {}, StopAnswer, signal, ANSWER_TIMEOUT_MS)).stateDir;
    } catch (error) {
      if (error instanceof UserError && CUT_OFF.has(systemCode(error.cause) ?? "")) return undefined;
      throw error;
    }
  }

  /** Tells of each ping as it is answered or lost; returns when the agent is done or `signal` aborts. */
  async ping(
    peer: string,
    options: PingOptions,
    onEvent: (event: PingEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#readLines("ping", { peer, ...options }, PingLine, signal, onEvent);
  }

  /** Tells how much has arrived, now and then and at the end. */
  async bench(
    peer: string,
    options: BenchOptions,
    onEvent: (event: BenchEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#readLines("bench", { peer, ...options }, BenchLine, signal, onEvent);
  }

  /** Asks for a listener that lives until `signal` aborts; tells its address. */
  async listen(
    what: { readonly forward: ForwardSpec } | { readonly socks: ListenSpec },
    onListening: (address: string) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const [path, spec] = "forward" in what ? ["forward", what.forward] : ["socks", what.socks];
    await this.#readLines(path, spec, ListenLine, signal, (line) => {
      if ("listening" in line) onListening(line.listening);
    });
  }

  /** Reads lines until the last; the one that says what went wrong is thrown. Returns when `signal` aborts. */
  async #readLines<Line extends object>(
    path: string,
    body: object,
    schema: v.GenericSchema<unknown, Line>,
    signal: AbortSignal,
    onLine: (line: Exclude<Line, ErrorAnswer | { end: true }>) => void,
  ): Promise<void> {
    try {
      const response = await this.#fetch("POST", path, body, signal);
      for await (const text of linesOf(response)) {
        const result = v.safeParse(schema, parseJson(text));
        if (!result.success) throw otherVersion();
        const line = result.output;
        if ("end" in line) return;
        if ("error" in line) throw asUserError(line as unknown as ErrorAnswer);
        onLine(line as Exclude<Line, ErrorAnswer | { end: true }>);
      }
    } catch (error) {
      if (signal.aborted) return;
      throw error instanceof UserError ? error : this.#connectionError(error);
    }
    throw new UserError(EXIT.agentNotRunning, `The agent stopped in the middle of "${path}"`);
  }

  async #ask<Schema extends v.GenericSchema>(
    method: "GET" | "POST",
    path: string,
    body: object | undefined,
    schema: Schema,
    signal: AbortSignal,
    timeoutMs: number | undefined,
  ): Promise<v.InferOutput<Schema>> {
    const timeout = timeoutMs === undefined ? undefined : AbortSignal.timeout(timeoutMs);
    try {
      const both = timeout === undefined ? signal : AbortSignal.any([signal, timeout]);
      const response = await this.#fetch(method, path, body, both);
      const result = v.safeParse(schema, await response.json());
      if (!result.success) throw otherVersion();
      return result.output;
    } catch (error) {
      if (error instanceof UserError) throw error;
      if (timeout?.aborted === true && !signal.aborted) {
        throw new UserError(EXIT.timedOut, `The agent on ${this.#socketPath} does not answer`, { cause: error });
      }
      throw this.#connectionError(error);
    }
  }

  /** A response with status 2xx; what the agent refuses is thrown. */
  async #fetch(method: "GET" | "POST", path: string, body: object | undefined, signal: AbortSignal): Promise<Response> {
    const response = await fetch(`http://agent/v1/${path}`, {
      method,
      unix: this.#socketPath,
      signal,
      // Bun ends a request after five quiet minutes otherwise.
      timeout: false,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
    if (response.ok) return response;
    const refused = v.safeParse(ErrorAnswer, parseJson(await response.text()));
    throw refused.success ? asUserError(refused.output) : otherVersion();
  }

  #connectionError(error: unknown): UserError {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ECONNREFUSED" || code === "ENOTDIR" || code === "FailedToOpenSocket") {
      return new UserError(EXIT.agentNotRunning, this.#notRunning, { cause: error });
    }
    if (code !== undefined && CUT_OFF.has(code)) {
      return new UserError(EXIT.agentNotRunning, "The agent stopped before it answered", { cause: error });
    }
    const reason = systemReason(error);
    const cure = code === "EACCES" || code === "EPERM" ? "; run this as the user that started the agent" : "";
    return new UserError(EXIT.failed, `Cannot talk to the agent on ${this.#socketPath}: ${reason}${cure}`, {
      cause: error,
    });
  }
}

const asUserError = ({ error }: ErrorAnswer): UserError =>
  new UserError(isExitCode(error.exitCode) ? error.exitCode : EXIT.failed, error.message);

const otherVersion = (): UserError =>
  new UserError(EXIT.failed, "The running agent is of another version than this command; restart the agent");

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function* linesOf(response: Response): AsyncGenerator<string> {
  if (response.body === null) return;
  let rest = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}
