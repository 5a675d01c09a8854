/**
 * The Linux engine: one synchronous loop around ppoll(2) on the TUN device, the UDP legs and the mailbox.
 *
 * Each turn serves commands first (keys arrive before the frames sealed with them), then a bounded batch from every ready descriptor,
 * so that neither the TUN device nor one busy socket starves the rest, then the plane's timeout, then hands on the reports. What a
 * batch leaves behind keeps its descriptor readable. Buffers are allocated once; packets are views into them.
 */
import { finishPackets } from "../../data/packet_headers.ts";
import { type Leg, PACKET_ROOM_BEFORE, type Plane, type PlaneIo } from "../../data/plane.ts";
import type { Instant } from "../../../shared/time.ts";
import type { Command, Engine, EngineCommand, EngineOptions, Mailbox, Report } from "../engine.ts";
import { GuardedPlane } from "../portable/guarded_plane.ts";
import { ReportQueue } from "../portable/report_queue.ts";
import { bootTime } from "./clock.ts";
import { EAGAIN, EBADF, EINTR, errnoText } from "./errno.ts";
import { type Libc, libc, POLLNVAL } from "./libc.ts";
import { Netlink, NetworkWatch } from "./netlink.ts";
import type { Offloads } from "./offloads.ts";
import { PollSet } from "./poll_set.ts";
import { TunDevice, TunError } from "./tun.ts";
import { SystemError, UdpSocket } from "./udp.ts";
import type { Incoming } from "./udp_message.ts";

/** Calls for one descriptor in a turn, and bytes: half a millisecond of work, so that nothing waits longer for its turn. */
const BATCH = 64;
const BATCH_BYTES = 512 * 1024;
/** The largest packet. */
const BUFFER_BYTES = 65_536;
/** The reader of the mailbox; TUN and UDP follow in the poll set. */
const WAKE = 0;

export class PollEngine implements Engine {
  readonly #libc: Libc = libc();
  readonly #mailbox: Mailbox;
  readonly #reports: ReportQueue;
  readonly #plane: Plane;
  readonly #legs = new Map<Leg, UdpSocket>();
  readonly #poll: PollSet<Source>;
  readonly #offloads: Offloads;
  /** Packets that the kernel would finish, where it does not. */
  readonly #finished = new Uint8Array(BUFFER_BYTES);
  readonly #wakeCount = new Uint8Array(8);
  #tun: TunDevice | undefined;
  /** Changes of our own device are no news. */
  #tunIndex: number | undefined;
  #watch: NetworkWatch | undefined;
  #tunWriteErrors = 0;
  #udpReceiveErrors = 0;
  #stopping = false;

  constructor(options: EngineOptions, mailbox: Mailbox) {
    this.#mailbox = mailbox;
    this.#offloads = options.offloads;
    this.#reports = new ReportQueue(options.report, options.batchesRead);
    this.#poll = new PollSet<Source>(mailbox.wakeFd, { kind: "wake" });
    const report = (report: Report): void => this.#reports.push(report);
    const count = (errno: number | undefined): void => {
      if (errno !== 0) this.#tunWriteErrors++;
    };
    const deliver = (packet: Uint8Array): void => count(this.#tun?.write(packet));
    const io: PlaneIo = {
      transmit: (leg, to, bytes, frameBytes, hops) => this.#legs.get(leg)?.send(to, bytes, frameBytes, hops) ?? EBADF,
      transmitRuns: (leg, bytes, runs, count) => {
        const socket = this.#legs.get(leg);
        if (socket !== undefined) socket.sendRuns(bytes, runs, count);
        else for (const run of runs.slice(0, count)) run.errno = EBADF;
      },
      deliver,
      deliverUnfinished: (packet, headers, segmentBytes) => {
        if (this.#tun?.hasHeader === true) count(this.#tun.writeUnfinished(packet, headers, segmentBytes));
        else finishPackets(packet, 0, packet.length, headers, segmentBytes, this.#finished, deliver);
      },
      report,
    };
    this.#plane = new GuardedPlane(options.createPlane(io), report);
  }

  run(): Promise<void> {
    this.#takeCommands();
    while (!this.#stopping) this.#turn();
    for (const socket of this.#legs.values()) socket.close();
    this.#legs.clear();
    this.#closeTun();
    this.#watch?.close();
    this.#reports.push({ type: "stopped" });
    this.#reports.flush();
    return Promise.resolve();
  }

  handle(commands: readonly Command[]): void {
    const now = bootTime();
    for (const command of commands) {
      switch (command.type) {
        case "open_udp":
          this.#openUdp(command);
          break;
        case "close_udp":
          this.#closeLeg(command.leg);
          break;
        case "open_tun":
          this.#openTun(command.name);
          break;
        case "close_tun":
          this.#closeTun();
          break;
        case "watch_network":
          this.#watchNetwork();
          break;
        case "stop":
          this.#stopping = true;
          break;
        default:
          this.#plane.handleCommand(command, now);
          if (command.type === "read_counters") this.#reportCounters();
      }
    }
  }

  #turn(): void {
    this.#reports.flush();
    const deadline = this.#plane.deadline();
    const ready = this.#poll.wait(deadline === undefined ? undefined : Math.max(0, deadline - bootTime()));
    if (ready > 0) {
      if (this.#poll.revents(WAKE) !== 0) this.#takeCommands();
      // Commands may have closed descriptors that the poll still shows as ready: the set keeps them apart by source.
      const { sources } = this.#poll;
      this.#plane.cork();
      for (let i = 1; i < sources.length; i++) {
        const revents = this.#poll.revents(i);
        const source = sources[i];
        if (revents === 0 || source === undefined) continue;
        if (source.kind === "udp") this.#receive(source.leg, source.socket, revents, bootTime());
        else if (source.kind === "tun") this.#readTun(source.device, bootTime());
        else if (source.kind === "network" && source.watch.drain(this.#tunIndex)) {
          this.#reports.push({ type: "network_changed", at: bootTime() });
        }
      }
      this.#plane.uncork(bootTime());
    }
    const due = this.#plane.deadline();
    if (due !== undefined) {
      const now = bootTime();
      if (due <= now) this.#plane.handleTimeout(now);
    }
  }

  #receive(leg: Leg, socket: UdpSocket, revents: number, now: Instant): void {
    if (this.#legs.get(leg) !== socket) return;
    for (let messages = 0, bytes = 0; messages < BATCH && bytes < BATCH_BYTES; ) {
      const count = socket.receive();
      if (count >= 0) {
        messages += count;
        for (let i = 0; i < count; i++) bytes += this.#handleIncoming(leg, socket.incoming[i], now);
        if (socket.isDrained) return;
      } else if (count === -EAGAIN) {
        return;
      } else if (count === -EBADF || (revents & POLLNVAL) !== 0) {
        this.#closeLeg(leg);
        this.#reports.push({
          type: "udp_failed",
          leg,
          errno: EBADF,
          message: "The UDP socket was closed from outside",
        });
        return;
      } else {
        messages++;
        // An ICMP error that waited on the socket: reading it has cleared it.
        if (count !== -EINTR) this.#udpReceiveErrors++;
      }
    }
  }

  /** Returns how many bytes that were. */
  #handleIncoming(leg: Leg, incoming: Incoming | undefined, now: Instant): number {
    if (incoming === undefined) return 0;
    const { from, bytes, length, frameBytes } = incoming;
    if (length < 0) this.#udpReceiveErrors++;
    else this.#plane.handleDatagrams(leg, from, bytes, length, frameBytes, now);
    return Math.max(0, length);
  }

  #readTun(device: TunDevice, now: Instant): void {
    if (this.#tun !== device) return;
    for (let i = 0, bytes = 0; i < BATCH && bytes < BATCH_BYTES; i++) {
      const length = device.read();
      if (length > 0) {
        bytes += length;
        const end = PACKET_ROOM_BEFORE + length;
        this.#plane.handleOffloaded(device.bytes, PACKET_ROOM_BEFORE, end, device.offload, now);
      } else if (length === -EAGAIN || length === 0) {
        return;
      } else if (length !== -EINTR) {
        this.#closeTun();
        this.#reports.push({
          type: "tun_failed",
          code: "lost",
          errno: -length,
          message: `TUN device "${device.name}" is gone: ${errnoText(-length)}`,
        });
        return;
      }
    }
  }

  #takeCommands(): void {
    // Reset before looking: a command sent in between rings again.
    this.#libc.read(this.#mailbox.wakeFd, this.#wakeCount, 8);
    for (let batch = this.#mailbox.take(); batch !== undefined; batch = this.#mailbox.take()) this.handle(batch);
  }

  #openUdp(command: OpenUdp): void {
    const { leg } = command;
    this.#closeLeg(leg);
    try {
      const socket = UdpSocket.open({ ...command, offloads: this.#offloads });
      this.#legs.set(leg, socket);
      this.#poll.add(socket.fd, { kind: "udp", leg, socket });
      this.#reports.push({ type: "udp_opened", leg, localAddress: socket.local.ip, localPort: socket.local.port });
    } catch (error) {
      const errno = error instanceof SystemError ? error.errno : 0;
      this.#reports.push({ type: "udp_failed", leg, errno, message: messageOf(error) });
    }
  }

  #closeLeg(leg: Leg): void {
    const socket = this.#legs.get(leg);
    if (socket === undefined) return;
    this.#legs.delete(leg);
    this.#poll.remove(socket.fd);
    socket.close();
  }

  #openTun(name: string | undefined): void {
    this.#closeTun();
    try {
      const device = TunDevice.open(name, this.#offloads);
      this.#tun = device;
      this.#tunIndex = linkIndex(device.name);
      this.#poll.add(device.fd, { kind: "tun", device });
      this.#reports.push({ type: "tun_opened", name: device.name });
    } catch (error) {
      const { code, errno } = error instanceof TunError ? error : { code: "failed" as const, errno: 0 };
      this.#reports.push({ type: "tun_failed", code, errno, message: messageOf(error) });
    }
  }

  #closeTun(): void {
    if (this.#tun === undefined) return;
    this.#poll.remove(this.#tun.fd);
    this.#tun.close();
    this.#tun = undefined;
  }

  #watchNetwork(): void {
    if (this.#watch !== undefined) return;
    try {
      this.#watch = new NetworkWatch();
      this.#poll.add(this.#watch.fd, { kind: "network", watch: this.#watch });
    } catch {
      // A sandbox that forbids netlink: changes are then found by paths that die.
    }
  }

  #reportCounters(): void {
    this.#reports.push({
      type: "engine_counters",
      tunWriteErrors: this.#tunWriteErrors,
      udpReceiveErrors: this.#udpReceiveErrors,
      droppedReports: this.#reports.dropped,
    });
  }
}

/** What stands behind a descriptor of the poll set. */
type Source =
  | { readonly kind: "wake" }
  | { readonly kind: "udp"; readonly leg: Leg; readonly socket: UdpSocket }
  | { readonly kind: "tun"; readonly device: TunDevice }
  | { readonly kind: "network"; readonly watch: NetworkWatch };

type OpenUdp = Extract<EngineCommand, { type: "open_udp" }>;

function linkIndex(name: string): number | undefined {
  try {
    const netlink = new Netlink();
    try {
      return netlink.linkIndex(name);
    } finally {
      netlink.close();
    }
  } catch {
    return undefined;
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
