/**
 * The unix socket by which `tunnelmesh-agent nc` gets a stream: one line of JSON that names peer and port, one line of JSON in answer, and
 * from then on the bytes of the stream, both ways. Apart from the local API because HTTP knows no half-close.
 *
 * A unix socket cannot be reset, so a stream that broke looks like one that ended: whoever cares asks for the outcome on a connection of its own.
 */
import { chmodSync } from "node:fs";
import type { Socket } from "bun";
import * as v from "valibot";
import { concatBytes, utf8, utf8Text } from "../../../shared/bytes.ts";
import { type StreamAnswer, StreamRequest } from "../../local/contract.ts";
import { removeStaleSocket } from "../../local/server.ts";
import { EXIT, systemReason, UserError, withoutKeys } from "../../state/user_error.ts";
import { closeError } from "./close_words.ts";
import { openStream, type PeerStreams } from "./peer_streams.ts";
import { SocketStream } from "./socket_stream.ts";

/** A request names a peer and a port. */
const MAX_REQUEST_BYTES = 4096;
const NEWLINE = 10;
/** Streams that broke, for which the outcome is remembered. */
const MAX_OUTCOMES = 256;

export interface StreamDoor {
  stop(): void;
}

/** Throws UserError 1 when the socket cannot be made. */
export async function openStreamDoor(streams: PeerStreams, path: string): Promise<StreamDoor> {
  await removeStaleSocket(path);
  const outcomes = new Outcomes();
  const mask = process.umask(0o177);
  try {
    const listener = Bun.listen<DoorConnection>({
      unix: path,
      allowHalfOpen: true,
      socket: {
        open: (socket) => {
          socket.data = new DoorConnection(streams, outcomes, socket);
        },
        data: (socket, bytes) => socket.data.handleData(bytes),
        drain: (socket) => socket.data.pump.handleSocketDrain(),
        end: (socket) => socket.data.pump.handleSocketEnd(),
        close: (socket, error) => socket.data.pump.handleSocketClose(error),
        error: () => {},
      },
    });
    chmodSync(path, 0o600);
    return { stop: () => listener.stop(true) };
  } catch (error) {
    throw new UserError(
      EXIT.failed,
      `Cannot make the socket ${path}: ${systemReason(error)}; choose another with --socket`,
      {
        cause: error,
      },
    );
  } finally {
    process.umask(mask);
  }
}

class Outcomes {
  readonly #errors = new Map<number, UserError>();
  #next = 1;

  newId(): number {
    return this.#next++;
  }

  set(id: number, error: UserError): void {
    this.#errors.set(id, error);
    const oldest = this.#errors.keys().next();
    if (this.#errors.size > MAX_OUTCOMES && oldest.done !== true) this.#errors.delete(oldest.value);
  }

  take(id: number): UserError | undefined {
    const error = this.#errors.get(id);
    this.#errors.delete(id);
    return error;
  }
}

class DoorConnection {
  readonly #streams: PeerStreams;
  readonly #outcomes: Outcomes;
  readonly #id: number;
  readonly #socket: Socket<DoorConnection>;
  readonly pump: SocketStream;
  #request: Uint8Array | undefined = new Uint8Array();
  #isAnswered = false;
  #peer = "";
  #port = 0;

  constructor(streams: PeerStreams, outcomes: Outcomes, socket: Socket<DoorConnection>) {
    this.#streams = streams;
    this.#outcomes = outcomes;
    this.#id = outcomes.newId();
    this.#socket = socket;
    this.pump = new SocketStream(
      {
        accepted: () => {
          this.#answer({ ok: true, id: this.#id });
          this.pump.release();
        },
        closed: (code) => {
          const error = closeError(code, this.#peer, this.#port);
          if (this.#isAnswered) {
            this.#outcomes.set(this.#id, error);
            return false;
          }
          this.#refuse(error);
          return true;
        },
      },
      true,
    );
    this.pump.setSocket(socket);
  }

  handleData(bytes: Uint8Array): void {
    if (this.#request === undefined) {
      this.pump.handleSocketData(bytes);
      return;
    }
    this.#request = concatBytes(this.#request, bytes);
    const end = this.#request.indexOf(NEWLINE);
    if (end < 0) {
      if (this.#request.length > MAX_REQUEST_BYTES) this.#socket.terminate();
      return;
    }
    const line = utf8Text(this.#request.subarray(0, end)) ?? "";
    const rest = this.#request.subarray(end + 1);
    this.#request = undefined;
    this.#open(line, rest);
  }

  #open(line: string, rest: Uint8Array): void {
    try {
      const request = v.safeParse(StreamRequest, parseJson(line));
      if (!request.success)
        throw new UserError(EXIT.failed, "The running agent does not understand this request; restart it");
      if ("outcome" in request.output) {
        const error = this.#outcomes.take(request.output.outcome);
        if (error !== undefined) throw error;
        this.#answer({ ok: true, id: request.output.outcome });
        this.#socket.end();
        return;
      }
      this.#port = request.output.port;
      const peer = openStream(this.#streams, request.output.peer, this.#port, this.pump);
      this.#peer = peer.entry.name;
      if (rest.length > 0) this.pump.handleSocketData(rest);
    } catch (error) {
      this.#refuse(error instanceof UserError ? error : new UserError(EXIT.failed, String(error)));
    }
  }

  #refuse(error: UserError): void {
    this.pump.giveUp();
    this.#answer({ error: { exitCode: error.exitCode, message: withoutKeys(error.message) } });
    this.#socket.end();
  }

  #answer(answer: StreamAnswer): void {
    this.#isAnswered = true;
    this.#socket.write(utf8(`${JSON.stringify(answer)}\n`));
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
