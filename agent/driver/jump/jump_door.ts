/**
 * Lets people in who come by plain OpenSSH through the coordinator: answers its questions about them, and joins those who may to a port of this
 * machine. The coordinator's word counts for nothing here; the client's own signature does (jump_proof.ts).
 */
import { connect } from "node:net";
import type { ClientChannel } from "ssh2";
import * as v from "valibot";
import { fromBase64 } from "../../../shared/bytes.ts";
import type { AgentConfig } from "../../cli/config.ts";
import type { Log } from "../../log.ts";
import { isJumpKey, takeJumpSession } from "../../state/jump_keys.ts";
import { systemReason } from "../../state/user_error.ts";
import { isAcceptable, isSigned } from "./jump_proof.ts";
import { readSignedLogin, type SignedLogin } from "./signed_login.ts";

const MAX_QUESTION_BYTES = 16_384;
const QUESTION_TIMEOUT_MS = 5000;
/** Questions and connections together: a coordinator gone mad gets no more of us. */
const MAX_CHANNELS = 128;
const UNKNOWN_KEY = "it does not know this key";
const LOOPBACK = "127.0.0.1";
const NEWLINE = 10;

const Base64 = v.pipe(v.string(), v.maxLength(8192));
const proof = { signed: Base64, signature: Base64, hash: v.nullable(v.picklist(["sha256", "sha512"])) };
const Question = v.variant("ask", [
  v.object({ ask: v.literal("key"), key: Base64 }),
  v.object({ ask: v.literal("login"), ...proof }),
  v.object({
    ask: v.literal("open"),
    port: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65_535)),
    ...proof,
  }),
]);
export type Question = v.InferOutput<typeof Question>;
type Proof = Exclude<Question, { ask: "key" }>;

export interface JumpDoorOptions {
  readonly ports: readonly number[];
  readonly stateDir: string;
  /** Our own name in the mesh. */
  readonly name: () => string | undefined;
  readonly log: Log;
}

/** Undefined: nobody may jump to this machine. */
export const jumpDoorOf = (
  { allowJump: ports, state, log }: Pick<AgentConfig, "allowJump" | "state" | "log">,
  name: () => string | undefined,
): JumpDoor | undefined => (ports.length === 0 ? undefined : new JumpDoor({ ports, stateDir: state.dir, name, log }));

export class JumpDoor {
  readonly #options: JumpDoorOptions;
  /** Connections of each session that are open. */
  readonly #open = new Map<string, number>();
  #channels = 0;

  constructor(options: JumpDoorOptions) {
    this.#options = options;
  }

  /** A channel from the coordinator: one question, one answer, and perhaps a connection. */
  handle(channel: ClientChannel): void {
    if (this.#channels >= MAX_CHANNELS) return void channel.destroy();
    this.#channels++;
    let seen = Buffer.alloc(0);
    const timer = setTimeout(() => channel.destroy(), QUESTION_TIMEOUT_MS);
    const onData = (chunk: Buffer): void => {
      seen = Buffer.concat([seen, chunk]);
      const end = seen.indexOf(NEWLINE);
      if (end < 0 && seen.length <= MAX_QUESTION_BYTES) return;
      channel.off("data", onData);
      channel.pause();
      clearTimeout(timer);
      this.#answer(channel, end < 0 ? "" : seen.subarray(0, end).toString());
    };
    channel.on("data", onData);
    channel.on("error", () => channel.destroy());
    channel.on("close", () => {
      clearTimeout(timer);
      this.#channels--;
    });
  }

  #answer(channel: ClientChannel, line: string): void {
    const question = v.safeParse(Question, parseJson(line));
    const judged = question.success ? this.judge(question.output) : "it does not understand the coordinator";
    if (typeof judged === "string") channel.end(`${judged}\n`);
    else if (judged.connect === undefined) channel.end("ok\n");
    else this.#connect(channel, judged.connect);
  }

  /** Why not, or what to do. */
  judge(question: Question): string | { readonly connect?: Connect } {
    const { stateDir, ports, log } = this.#options;
    if (question.ask === "key") {
      return isJumpKey(stateDir, fromBase64(question.key) ?? new Uint8Array()) ? {} : UNKNOWN_KEY;
    }
    const login = this.#provenLogin(question);
    if (typeof login === "string") return login;
    if (question.ask === "login") return {};
    const { port } = question;
    if (!ports.includes(port)) return `port ${port} is not open to jumps; its agent needs --allow-jump ${port}`;
    try {
      // A client that shares its connection (ControlMaster) opens more while the first is there.
      const isFresh = this.#open.has(login.session) || takeJumpSession(stateDir, login.session);
      return isFresh ? { connect: { port, session: login.session } } : "this login has been used before";
    } catch (error) {
      log.warn(`Cannot admit a jump: ${error instanceof Error ? error.message : String(error)}`);
      return "it cannot remember this login";
    }
  }

  #provenLogin({ signed, signature, hash }: Proof): SignedLogin | string {
    const bytes = fromBase64(signed) ?? new Uint8Array();
    const login = readSignedLogin(bytes);
    if (login === undefined) return "this is no login";
    if (login.user.toLowerCase() !== this.#options.name()) return "this login is for another machine";
    if (!isAcceptable(login.algorithm)) return "keys of this type are not accepted";
    if (!isJumpKey(this.#options.stateDir, login.key)) return UNKNOWN_KEY;
    const isProven = isSigned(login, bytes, fromBase64(signature) ?? new Uint8Array(), hash);
    return isProven ? login : "the signature is wrong";
  }

  #connect(channel: ClientChannel, { port, session }: Connect): void {
    this.#open.set(session, (this.#open.get(session) ?? 0) + 1);
    const socket = connect({ host: LOOPBACK, port, allowHalfOpen: true });
    let isOpen = false;
    socket.on("connect", () => {
      isOpen = true;
      socket.setNoDelay(true);
      channel.write("ok\n");
      channel.pipe(socket).pipe(channel);
      this.#options.log.info(`A client of OpenSSH has come in to port ${port}`);
    });
    socket.on("error", (error) => {
      if (isOpen) channel.close();
      else channel.end(`port ${port} does not answer: ${systemReason(error)}\n`);
    });
    socket.on("close", () => {
      const left = (this.#open.get(session) ?? 1) - 1;
      if (left > 0) this.#open.set(session, left);
      else this.#open.delete(session);
      if (isOpen) channel.close();
    });
    channel.on("close", () => socket.destroy());
  }
}

interface Connect {
  readonly port: number;
  readonly session: string;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
