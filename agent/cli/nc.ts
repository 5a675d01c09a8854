/**
 * `nc PEER PORT`: standard input and output become a stream to a port of the peer. Binary clean; the end of the input ends that direction
 * only; done when the other side has ended. So it serves as OpenSSH's ProxyCommand.
 */
import { connect, type Socket } from "node:net";
import * as v from "valibot";
import { utf8Text } from "../../shared/bytes.ts";
import { StreamAnswer } from "../local/contract.ts";
import { EXIT, isExitCode, systemCode, UserError } from "../state/user_error.ts";

/** An answer is one line of JSON. */
const MAX_ANSWER_BYTES = 8192;
const NEWLINE = 10;

export interface Pipes {
  readonly input: NodeJS.ReadableStream;
  readonly output: NodeJS.WritableStream;
}

/** Throws UserError for a peer or port that is not there. @param notRunning what to say when no agent answers */
export async function netcat(
  socketPath: string,
  request: { readonly peer: string; readonly port: number },
  { input, output }: Pipes,
  notRunning: string,
): Promise<void> {
  const { socket, id, first } = await ask(socketPath, request, notRunning);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const broken = (): UserError =>
    new UserError(EXIT.failed, `The connection to port ${request.port} of "${request.peer}" broke`);
  // By what each write says when it is done: "drain" of a pipe is not always told.
  let unwritten = 0;
  let hasEnded = false;
  const write = (bytes: Uint8Array): void => {
    unwritten++;
    const hasRoom = output.write(bytes, () => {
      if (--unwritten > 0) return;
      if (hasEnded) resolve();
      else socket.resume();
    });
    if (!hasRoom && unwritten > 0) socket.pause();
  };
  socket.on("data", write);
  socket.on("end", () => {
    hasEnded = true;
    if (unwritten === 0) resolve();
  });
  socket.on("error", () => reject(broken()));
  // After the end it says nothing new: what came before may still be on its way to our output.
  socket.on("close", () => {
    if (!hasEnded) reject(broken());
  });
  // Whoever reads our output has gone: nothing more is wanted.
  output.on("error", () => resolve());
  if (first.length > 0) write(first);
  socket.resume();
  input.on("data", (bytes: Uint8Array) => {
    if (socket.write(bytes)) return;
    input.pause();
    socket.once("drain", () => input.resume());
  });
  input.on("end", () => socket.end());
  input.on("error", () => socket.end());
  try {
    await promise;
  } finally {
    socket.destroy();
  }
  // An end may have been a break: the agent knows.
  (await ask(socketPath, { outcome: id }, "The agent stopped in the middle of the connection")).socket.destroy();
}

/** A connection on which the agent has given a favourable answer, and what came behind it. */
async function ask(socketPath: string, request: object, notRunning: string): Promise<Answered> {
  const socket = await open(socketPath, notRunning);
  socket.write(`${JSON.stringify(request)}\n`);
  try {
    return await readAnswer(socket);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

interface Answered {
  readonly socket: Socket;
  readonly id: number;
  readonly first: Uint8Array;
}

async function open(path: string, notRunning: string): Promise<Socket> {
  const socket = connect({ path, allowHalfOpen: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("connect", resolve);
  socket.once("error", reject);
  try {
    await promise;
    return socket;
  } catch (error) {
    const isAbsent = ["ENOENT", "ECONNREFUSED", "ENOTDIR"].includes(systemCode(error) ?? "");
    if (isAbsent) throw new UserError(EXIT.agentNotRunning, notRunning, { cause: error });
    const reason = systemCode(error) ?? String(error);
    throw new UserError(EXIT.failed, `Cannot talk to the agent on ${path}: ${reason}`, { cause: error });
  }
}

async function readAnswer(socket: Socket): Promise<Answered> {
  const { promise, resolve, reject } = Promise.withResolvers<Answered>();
  let bytes = Buffer.alloc(0);
  const onData = (chunk: Buffer): void => {
    bytes = Buffer.concat([bytes, chunk]);
    const end = bytes.indexOf(NEWLINE);
    if (end < 0 && bytes.length <= MAX_ANSWER_BYTES) return;
    socket.pause();
    socket.off("data", onData);
    const answer = v.safeParse(StreamAnswer, parseJson(utf8Text(bytes.subarray(0, Math.max(0, end))) ?? ""));
    if (!answer.success)
      reject(
        new UserError(EXIT.failed, "The running agent is of another version than this command; restart the agent"),
      );
    else if ("error" in answer.output) {
      const { exitCode, message } = answer.output.error;
      reject(new UserError(isExitCode(exitCode) ? exitCode : EXIT.failed, message));
    } else resolve({ socket, id: answer.output.id, first: new Uint8Array(bytes.subarray(end + 1)) });
  };
  const onClose = (): void => reject(new UserError(EXIT.agentNotRunning, "The agent stopped before it answered"));
  socket.on("data", onData);
  socket.once("close", onClose);
  socket.on("error", onClose);
  try {
    return await promise;
  } finally {
    socket.off("close", onClose);
    socket.off("error", onClose);
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
