/** Listening on a local TCP port for programs that want to reach a peer. */
import type { Socket } from "bun";
import { formatTransportAddress } from "../../../shared/address.ts";
import { EXIT, systemReason, UserError } from "../../state/user_error.ts";

/** Connections of one listener at a time; more wait in the kernel's queue no longer than it takes to close them. */
const MAX_CONNECTIONS = 4096;

export interface Listening {
  /** `ip:port` with the real port where 0 was asked. */
  readonly address: string;
  /** Ends the listener; with `true` its connections too. */
  stop(withConnections: boolean): void;
}

export interface ConnectionHandlers<T> {
  opened(socket: Socket<T>): void;
  data(socket: Socket<T>, bytes: Uint8Array): void;
  drain(socket: Socket<T>): void;
  end(socket: Socket<T>): void;
  close(socket: Socket<T>, error?: unknown): void;
}

/** Throws UserError 1 when the port cannot be had. `what` names the option it came from. */
export function listenTcp<T>(bind: string, port: number, what: string, handlers: ConnectionHandlers<T>): Listening {
  let open = 0;
  try {
    const listener = Bun.listen<T>({
      hostname: bind,
      port,
      allowHalfOpen: true,
      socket: {
        open(socket) {
          if (++open > MAX_CONNECTIONS) {
            socket.terminate();
            return;
          }
          socket.setNoDelay(true);
          handlers.opened(socket);
        },
        data: (socket, bytes) => handlers.data(socket, bytes),
        drain: (socket) => handlers.drain(socket),
        end: (socket) => handlers.end(socket),
        close(socket, error) {
          open--;
          if (socket.data !== undefined) handlers.close(socket, error);
        },
        error: () => {},
      },
    });
    return {
      address: formatTransportAddress({ ip: bind, port: listener.port }),
      stop: (withConnections) => listener.stop(withConnections),
    };
  } catch (error) {
    const address = formatTransportAddress({ ip: bind, port });
    throw new UserError(
      EXIT.failed,
      `Cannot listen on ${address} for ${what}: ${systemReason(error)}; choose another port`,
      {
        cause: error,
      },
    );
  }
}
