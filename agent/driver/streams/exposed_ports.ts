/**
 * Streams and datagrams that peers open to ports of this machine: which are let in, and joining them to the local program.
 *
 * A port that `--expose` names leads to 127.0.0.1. Where there is a TUN device, every other port leads to this machine's own mesh address,
 * which the peer could reach by IP anyway. Everything else is refused. A peer names nothing but a port, so it reaches no other machine.
 */
import type { Log } from "../../log.ts";
import type { PeerId } from "../../../shared/session/identity.ts";
import type { ExposedPorts } from "../../state/forward_spec.ts";
import { systemCode } from "../../state/user_error.ts";
import { SOCKET_STREAM_HANDLERS, SocketStream } from "./socket_stream.ts";
import type { StreamDriver, StreamEvents, StreamHandle } from "./stream_driver.ts";

const LOOPBACK = "127.0.0.1";

export interface ExposedPortsOptions {
  readonly driver: StreamDriver;
  readonly exposed: ExposedPorts;
  /** Our mesh address while there is a TUN device. */
  readonly meshAddress: () => string | undefined;
  readonly log: Log;
}

/** Where on this machine a port leads; undefined: it is not open. */
export function exposedAddress(
  options: Pick<ExposedPortsOptions, "exposed" | "meshAddress">,
  port: number,
): string | undefined {
  if (port === 0) return undefined;
  if (options.exposed === "all" || options.exposed.includes(port)) return LOOPBACK;
  return options.meshAddress();
}

export function serveExposedPorts(options: ExposedPortsOptions): void {
  options.driver.onOpened = (_peer: PeerId, port: number, stream: StreamHandle): StreamEvents | undefined => {
    const hostname = exposedAddress(options, port);
    if (hostname === undefined) {
      stream.reset("not_exposed");
      return undefined;
    }
    const pump = new SocketStream();
    pump.setStream(stream);
    void connect(hostname, port, pump, stream, options.log);
    return pump;
  };
}

/** Never rejects: what goes wrong is a reset. */
async function connect(
  hostname: string,
  port: number,
  pump: SocketStream,
  stream: StreamHandle,
  log: Log,
): Promise<void> {
  try {
    await Bun.connect<SocketStream>({
      hostname,
      port,
      allowHalfOpen: true,
      data: pump,
      socket: {
        ...SOCKET_STREAM_HANDLERS,
        open(socket) {
          socket.setNoDelay(true);
          stream.accept();
          pump.setSocket(socket);
        },
      },
    });
  } catch (error) {
    if (pump.isOver) return;
    const isRefused = systemCode(error) === "ECONNREFUSED";
    log.debug(`Cannot connect to ${hostname}:${port} for a peer: ${systemCode(error) ?? String(error)}`);
    pump.giveUp();
    stream.reset(isRefused ? "refused" : "unreachable");
  }
}
