/**
 * Doors for people who have nothing but OpenSSH: `ssh -J homelab@coordinator:2222 user@homelab`.
 *
 * An agent that allows it says so by asking for a forward of "jump" port 1 on its own SSH connection. Who may come in, it decides alone:
 * the coordinator hands on the client's key and proof, and cannot make any up (PROTOCOL.md, "Jumping").
 */
// @ts-types="@types/ssh2"
import type { Connection, ServerChannel } from "ssh2";
import type { PeerId } from "../../shared/session/identity.ts";
import { instant } from "../../shared/time.ts";
import { SourceLimits } from "../limits.ts";

export const JUMP_ADDRESS = "jump";
export const JUMP_PORT = 1;

/** What strangers may have one agent asked; each login takes three questions, and one more for each key that is not the right one. */
const ASK_RATE = { perSecond: 10, burst: 60 };
const MAX_ASKED_PEERS = 10_000;
const ANSWER_TIMEOUT_MS = 5000;
/** A reason is a sentence. */
const MAX_ANSWER_BYTES = 1000;
const NEWLINE = 10;

/** One line of JSON; byte strings in base64. */
export type JumpQuestion =
  /** Would this key do? */
  | { readonly ask: "key"; readonly key: string }
  | ({ readonly ask: "login" } & JumpProof)
  | ({ readonly ask: "open"; readonly port: number } & JumpProof);

/** What the client has signed (RFC 4252 §7), with what, and the signature as ssh2 gives it. */
export interface JumpProof {
  readonly signed: string;
  readonly signature: string;
  readonly hash: string | null;
}

export type JumpAnswer =
  | { readonly ok: true; readonly channel: ServerChannel }
  | { readonly ok: false; readonly reason: string };

export class JumpBoard {
  readonly #doors = new Map<PeerId, Connection>();
  readonly #limits = new SourceLimits(ASK_RATE, MAX_ASKED_PEERS);

  register(peer: PeerId, connection: Connection): void {
    this.#doors.set(peer, connection);
  }

  unregister(peer: PeerId, connection: Connection): void {
    if (this.#doors.get(peer) === connection) this.#doors.delete(peer);
  }

  /** Never rejects. After an "open" that was granted, `channel` is the connection itself; otherwise it is over. */
  async ask(peer: PeerId, name: string, question: JumpQuestion): Promise<JumpAnswer> {
    const door = this.#doors.get(peer);
    if (door === undefined) return refused(`"${name}" allows no jumps, or is not connected by SSH at this moment`);
    if (!this.#limits.take(peer, instant(performance.now())))
      return refused(`"${name}" was asked too often; try again later`);
    const answer = Promise.withResolvers<JumpAnswer>();
    let channel: ServerChannel | undefined;
    const timer = setTimeout(() => {
      channel?.destroy();
      answer.resolve(refused(`"${name}" does not answer`));
    }, ANSWER_TIMEOUT_MS);
    try {
      door.forwardOut(JUMP_ADDRESS, JUMP_PORT, "coordinator", 0, (error, opened) => {
        if (error !== undefined) return answer.resolve(refused(`"${name}" does not answer`));
        channel = opened;
        opened.on("error", () => opened.destroy());
        opened.write(`${JSON.stringify(question)}\n`);
        readAnswer(opened, name, answer.resolve);
      });
      const result = await answer.promise;
      if (result.ok && question.ask !== "open") result.channel.end();
      return result;
    } catch {
      return refused(`"${name}" has gone`);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** One line: "ok", or why not. What follows belongs to the connection. */
function readAnswer(channel: ServerChannel, name: string, resolve: (answer: JumpAnswer) => void): void {
  let seen = Buffer.alloc(0);
  const onData = (chunk: Buffer): void => {
    seen = Buffer.concat([seen, chunk]);
    const end = seen.indexOf(NEWLINE);
    if (end < 0 && seen.length <= MAX_ANSWER_BYTES) return;
    channel.off("data", onData);
    channel.pause();
    const line = end < 0 ? "" : seen.subarray(0, end).toString();
    if (line === "ok") {
      if (seen.length > end + 1) channel.unshift(seen.subarray(end + 1));
      return resolve({ ok: true, channel });
    }
    channel.end();
    resolve(refused(`"${name}" refuses: ${printable(line)}`));
  };
  channel.on("data", onData);
  channel.on("close", () => resolve(refused(`"${name}" refuses`)));
}

const refused = (reason: string): JumpAnswer => ({ ok: false, reason });
/** An agent's words on another person's terminal. */
const printable = (text: string): string => text.replace(/[^\u0020-\u007e]/g, "?").slice(0, 200);
