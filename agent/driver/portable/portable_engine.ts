/**
 * The engine for systems without the Linux I/O layer: Bun's UDP sockets and one timer, in the thread's event loop. No TUN device.
 *
 * Bun opens sockets asynchronously and names senders as text, so this engine allocates for every packet; it is there to work
 * everywhere, not to be fast.
 */
import { networkInterfaces } from "node:os";
import {
  canonicalIp,
  PACKED_ADDRESS_BYTES,
  packAddress,
  type TransportAddress,
  unpackAddress,
} from "../../../shared/address.ts";
import type { Instant } from "../../../shared/time.ts";
import { framesOf } from "../../data/send_batch.ts";
import type { Leg, Plane } from "../../data/plane.ts";
import type { Command, Engine, EngineCommand, EngineOptions, Report } from "../engine.ts";
import { portableTime } from "./clock.ts";
import { GuardedPlane } from "./guarded_plane.ts";
import { ReportQueue } from "./report_queue.ts";

/** How often the list of interfaces is compared, where nobody tells us about changes. */
const NETWORK_POLL_MS = 2000;
/** Remote addresses whose text or bytes are remembered; the whole memory is dropped when full. */
const MAX_REMEMBERED = 4096;
/** Error numbers of a send that has no socket, or found its buffer full. Systems differ; these are Linux's. */
const EBADF = 9;
const EAGAIN = 11;
const EIO = 5;

/** What systems begin with; there is no way to ask for the default. */
const DEFAULT_HOPS = 64;

type Socket = Bun.udp.Socket<"uint8array">;

export class PortableEngine implements Engine {
  readonly #reports: ReportQueue;
  readonly #report: (report: Report) => void;
  readonly #plane: Plane;
  /** Undefined while the socket is being opened; the object tells a reopened leg from its predecessor. */
  readonly #legs = new Map<Leg, { socket: Socket | undefined }>();
  readonly #packed = new Map<string, Uint8Array>();
  readonly #unpacked = new Map<string, TransportAddress>();
  readonly #stopped = Promise.withResolvers<void>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerAt: Instant | undefined;
  #networkTimer: ReturnType<typeof setInterval> | undefined;
  #tunWriteErrors = 0;
  #udpReceiveErrors = 0;
  #hasStopped = false;

  constructor(options: EngineOptions) {
    this.#reports = new ReportQueue(options.report, options.batchesRead);
    const report = (report: Report): void => {
      // Reports of one event leave together, after it.
      if (this.#reports.isEmpty) queueMicrotask(() => this.#reports.flush());
      this.#reports.push(report);
    };
    this.#plane = new GuardedPlane(
      options.createPlane({
        transmit: (leg, to, bytes, frameBytes, hops) => {
          let errno = 0;
          for (const frame of framesOf(bytes, frameBytes)) errno = this.#transmit(leg, to, frame, hops) || errno;
          return errno;
        },
        deliver: () => {
          this.#tunWriteErrors++;
        },
        report,
      }),
      report,
    );
    this.#report = report;
  }

  run(): Promise<void> {
    this.#arm();
    return this.#stopped.promise;
  }

  handle(commands: readonly Command[]): void {
    const now = portableTime();
    for (const command of commands) {
      if (this.#hasStopped) return;
      switch (command.type) {
        case "open_udp":
          void this.#openUdp(command);
          break;
        case "close_udp":
          this.#closeLeg(command.leg);
          break;
        case "open_tun":
          this.#report({
            type: "tun_failed",
            code: "unavailable",
            errno: 0,
            message: "Cannot open a TUN device: this engine has none; use --tun off",
          });
          break;
        case "close_tun":
          break;
        case "watch_network":
          this.#watchNetwork();
          break;
        case "stop":
          this.#stop();
          return;
        default:
          this.#plane.handleCommand(command, now);
          if (command.type === "read_counters") {
            this.#report({
              type: "engine_counters",
              tunWriteErrors: this.#tunWriteErrors,
              udpReceiveErrors: this.#udpReceiveErrors,
              droppedReports: this.#reports.dropped,
            });
          }
      }
    }
    this.#arm();
  }

  /** Never rejects: a failure is a report. */
  async #openUdp(command: Extract<EngineCommand, { type: "open_udp" }>): Promise<void> {
    const { leg, family, port } = command;
    this.#closeLeg(leg);
    const entry: { socket: Socket | undefined } = { socket: undefined };
    this.#legs.set(leg, entry);
    const hostname = command.address ?? (family === 4 ? "0.0.0.0" : "::");
    try {
      const socket = await Bun.udpSocket({
        hostname,
        port,
        binaryType: "uint8array",
        socket: {
          data: (_socket, bytes, fromPort, fromIp) => this.#receive(leg, entry, bytes, fromIp, fromPort),
          error: () => {
            this.#udpReceiveErrors++;
          },
        },
      });
      if (this.#legs.get(leg) !== entry) {
        socket.close();
        return;
      }
      entry.socket = socket;
      const localAddress = canonicalIp(socket.hostname) ?? hostname;
      this.#report({ type: "udp_opened", leg, localAddress, localPort: socket.port });
    } catch (error) {
      if (this.#legs.get(leg) !== entry) return;
      this.#legs.delete(leg);
      const { errno, text } = describe(error);
      this.#report({
        type: "udp_failed",
        leg,
        errno,
        message: `Cannot bind UDP port ${port} on ${hostname}: ${text}`,
      });
    }
  }

  #closeLeg(leg: Leg): void {
    const entry = this.#legs.get(leg);
    this.#legs.delete(leg);
    entry?.socket?.close();
  }

  #receive(leg: Leg, entry: object, bytes: Uint8Array, fromIp: string, fromPort: number): void {
    // A datagram that was on its way when the leg was closed.
    if (this.#legs.get(leg) !== entry) return;
    const from = this.#pack(fromIp, fromPort);
    if (from === undefined) return;
    this.#plane.handleDatagram(leg, from, bytes, portableTime());
    this.#arm();
  }

  #transmit(leg: Leg, to: Uint8Array, bytes: Uint8Array, hops: number | undefined): number {
    const socket = this.#legs.get(leg)?.socket;
    if (socket === undefined) return EBADF;
    const { ip, port } = this.#unpack(to);
    try {
      if (hops !== undefined) socket.setTTL(hops);
      return socket.send(bytes, port, ip) ? 0 : EAGAIN;
    } catch (error) {
      return describe(error).errno || EIO;
    } finally {
      if (hops !== undefined) socket.setTTL(DEFAULT_HOPS);
    }
  }

  #pack(ip: string, port: number): Uint8Array | undefined {
    const key = `${ip} ${port}`;
    const known = this.#packed.get(key);
    if (known !== undefined) return known;
    // The zone of a link-local sender has no place in a packed address.
    const canonical = canonicalIp(ip.replace(/%.*$/, ""));
    if (canonical === undefined) return undefined;
    const packed = packAddress({ ip: canonical, port });
    if (this.#packed.size >= MAX_REMEMBERED) this.#packed.clear();
    this.#packed.set(key, packed);
    return packed;
  }

  #unpack(packed: Uint8Array): TransportAddress {
    const key = String.fromCharCode(...packed.subarray(0, PACKED_ADDRESS_BYTES));
    const known = this.#unpacked.get(key);
    if (known !== undefined) return known;
    const address = unpackAddress(packed);
    if (this.#unpacked.size >= MAX_REMEMBERED) this.#unpacked.clear();
    this.#unpacked.set(key, address);
    return address;
  }

  /** One timer, for the plane's deadline. */
  #arm(): void {
    const deadline = this.#hasStopped ? undefined : this.#plane.deadline();
    if (deadline === this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = deadline;
    if (deadline === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#timerAt = undefined;
        const now = portableTime();
        const due = this.#plane.deadline();
        // Timers may fire a fraction of a millisecond early.
        if (due !== undefined && due <= now) this.#plane.handleTimeout(now);
        this.#arm();
      },
      Math.max(0, Math.ceil(deadline - portableTime())),
    );
  }

  #watchNetwork(): void {
    let known = JSON.stringify(networkInterfaces());
    this.#networkTimer ??= setInterval(() => {
      const current = JSON.stringify(networkInterfaces());
      if (current === known) return;
      known = current;
      this.#report({ type: "network_changed", at: portableTime() });
    }, NETWORK_POLL_MS);
  }

  #stop(): void {
    this.#hasStopped = true;
    for (const leg of this.#legs.keys()) this.#closeLeg(leg);
    clearInterval(this.#networkTimer);
    this.#arm();
    this.#report({ type: "stopped" });
    this.#reports.flush();
    this.#stopped.resolve();
  }
}

function describe(error: unknown): { errno: number; text: string } {
  if (!(error instanceof Error)) return { errno: 0, text: String(error) };
  const { errno, code } = error as Error & { errno?: unknown; code?: unknown };
  return {
    errno: typeof errno === "number" ? Math.abs(errno) : 0,
    text: code === "EADDRINUSE" ? "address already in use" : error.message,
  };
}
