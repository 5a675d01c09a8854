/** Starts the real coordinator as users do, and a minimal agent on a real WebSocket. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
// @ts-types="@types/ws"
import { WebSocket } from "ws";
import { afterAll } from "vitest";
import { signSessionKey } from "../../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../../shared/session/primitives.ts";
import { AgentChannel } from "../../../shared/signal/channel.ts";
import {
  type AgentMessage,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  encodeMessage,
} from "../../../shared/signal/messages.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));
/**
 * Deno adds -A to the arguments of a child when it finds its own path in them. The shell takes the path from a variable instead, and
 * becomes Deno, so that signals arrive.
 */
const SHELL = "/bin/sh";
const asDeno = (argv: string[]): string[] => ["-c", 'exec "$DENO_UNDER_TEST" "$@"', "sh", ...argv];
/** How long anything may take before a test says what it waited for. */
const PATIENCE_MS = 10_000;

export type Event = Record<string, unknown> & { readonly event?: string };

export class CoordinatorProcess {
  readonly events: Event[] = [];
  readonly dataDir: string;
  readonly #child: ChildProcess;
  readonly #exited: Promise<number | null>;
  readonly #waiting = new Set<() => void>();
  #hasExited = false;
  stderr = "";

  constructor(dataDir: string, argv: string[]) {
    this.dataDir = dataDir;
    this.#child = spawn(SHELL, asDeno(["run", "-P", "coordinator/main.ts", ...argv]), {
      cwd: root,
      env: processEnv(),
      stdio: ["ignore", "inherit", "pipe"],
    });
    let rest = "";
    this.#child.stderr?.on("data", (chunk: Buffer) => {
      this.stderr += chunk.toString();
      const lines = (rest + chunk.toString()).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("{")) this.events.push(JSON.parse(line) as Event);
      for (const look of this.#waiting) look();
    });
    this.#exited = new Promise((resolve) =>
      this.#child.on("close", (code) => {
        this.#hasExited = true;
        resolve(code);
      }),
    );
  }

  /** Runs on loopback and free ports; `ready` has been logged when this returns. */
  static async start(argv: string[] = [], dataDir = temporaryDirectory()): Promise<CoordinatorProcess> {
    const defaults =
      "--listen 127.0.0.1:0 --ssh-listen 127.0.0.1:0 --stun-address 127.0.0.1 --stun-port 0 --stun-alternate-port 0 --log-format json";
    const coordinator = new CoordinatorProcess(dataDir, ["--data-dir", dataDir, ...defaults.split(" "), ...argv]);
    await coordinator.event("ready");
    return coordinator;
  }

  /** The first event of this name, or the next one after `skip` of them. */
  event(name: string, skip = 0): Promise<Event> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => done(), PATIENCE_MS);
      const done = (found?: Event): void => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        if (found === undefined) reject(new Error(`No event "${name}" in:\n${this.stderr}`));
        else resolve(found);
      };
      const look = (): void => {
        const found = this.events.filter(({ event }) => event === name)[skip];
        if (found !== undefined) done(found);
      };
      this.#waiting.add(look);
      void this.#exited.then(() => done());
      look();
    });
  }

  port(kind: string): number {
    return Number(this.events.find(({ event, kind: of }) => event === "listening" && of === kind)?.["port"]);
  }

  get url(): string {
    return `http://127.0.0.1:${this.port("http")}`;
  }

  get joinKey(): string {
    const line = this.events.find(({ event }) => event === "join_line");
    return /--key (\S+)$/.exec(String(line?.["command"]))?.[1] ?? "";
  }

  signal(signal: NodeJS.Signals): void {
    // Not child.kill(): Deno then reports the signal as the cause of death, even if the child handled it and exited with a code.
    if (this.#child.pid !== undefined && !this.#hasExited) process.kill(this.#child.pid, signal);
  }

  /** Exit code after a signal, null after SIGKILL. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    this.signal(signal);
    return this.#exited;
  }
}

/** Runs one command of the coordinator to its end. */
export function runCoordinator(
  argv: string[],
  permissions = ["-P"],
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const options = { cwd: root, env: processEnv(), timeout: PATIENCE_MS };
    execFile(SHELL, asDeno(["run", ...permissions, "coordinator/main.ts", ...argv]), options, (error, stdout, stderr) =>
      resolve({ code: typeof error?.code === "number" ? error.code : error === null ? 0 : -1, stdout, stderr }),
    ).stdin?.end();
  });
}

export class SocketAgent {
  readonly received: CoordinatorMessage[] = [];
  readonly identity: Ed25519Key;
  readonly #sessionKey: X25519Key;
  readonly #socket: WebSocket;
  readonly #channel: AgentChannel;
  readonly #waiting = new Set<() => void>();
  readonly closed: Promise<number>;

  constructor(url: string, options: { name: string; key?: string; fill: number; fingerprint?: string; ca?: string }) {
    this.identity = new Ed25519Key(new Uint8Array(32).fill(options.fill));
    this.#sessionKey = new X25519Key(new Uint8Array(32).fill(options.fill));
    this.#channel = new AgentChannel({
      staticKey: this.#sessionKey,
      ephemeral: new X25519Key(crypto.getRandomValues(new Uint8Array(32))),
      hello: {
        version: 1,
        features: 0,
        identity: this.identity.publicKey,
        signature: signSessionKey(this.identity, this.#sessionKey.publicKey),
        name: options.name,
        nameIsExplicit: false,
        key: options.key,
        software: "test",
        instance: 1,
      },
      accept: (fingerprint) => options.fingerprint === undefined || fingerprint === options.fingerprint,
    });
    this.#socket = new WebSocket(`${url.replace("http", "ws")}/v1/signal`, {
      perMessageDeflate: false,
      ...(options.ca === undefined ? {} : { ca: options.ca }),
    });
    this.#socket.on("open", () => this.#socket.send(this.#channel.start()));
    this.#socket.on("message", (data: Buffer) => this.#receive(new Uint8Array(data)));
    this.#socket.on("error", () => {});
    this.closed = new Promise((resolve) => this.#socket.on("close", (code: number) => resolve(code)));
  }

  #receive(bytes: Uint8Array): void {
    const outcome = this.#channel.handle(bytes);
    if (outcome.type === "reply") this.#socket.send(outcome.bytes);
    if (outcome.type !== "message") return;
    const message = decodeCoordinatorMessage(outcome.plaintext);
    if (message === undefined) return;
    this.received.push(message);
    if (message.type === "clock_request") {
      const now = performance.now();
      this.send({ type: "clock_reply", id: message.id, receivedAt: now, sentAt: now });
    }
    for (const look of this.#waiting) look();
  }

  send(message: AgentMessage): void {
    this.#socket.send(this.#channel.seal(encodeMessage(message)));
  }

  sendPlaintext(plaintext: Uint8Array): void {
    this.#socket.send(this.#channel.seal(plaintext));
  }

  close(): void {
    this.#socket.terminate();
  }

  /** The first message of this type that fits. */
  message<T extends CoordinatorMessage["type"]>(
    type: T,
    fits: (message: Extract<CoordinatorMessage, { type: T }>) => boolean = () => true,
  ): Promise<Extract<CoordinatorMessage, { type: T }>> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const seen = this.received.map((message) => message.type).join(", ");
        reject(new Error(`No "${type}" among: ${seen}`));
      }, PATIENCE_MS);
      const look = (): void => {
        for (const message of this.received) {
          if (message.type !== type || !fits(message as Extract<CoordinatorMessage, { type: T }>)) continue;
          clearTimeout(timer);
          this.#waiting.delete(look);
          resolve(message as Extract<CoordinatorMessage, { type: T }>);
          return;
        }
      };
      this.#waiting.add(look);
      look();
    });
  }
}

export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "tunnelmesh-coordinator-"));
  directories.push(directory);
  return directory;
}

const directories: string[] = [];
// Not at the exit of the process: a test worker is ended without one.
afterAll(() => {
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});

/** Without what the shell may have set for us, so that defaults are defaults. */
const processEnv = (): Record<string, string | undefined> => ({
  ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TUNNELMESH_"))),
  DENO_UNDER_TEST: process.execPath,
});
