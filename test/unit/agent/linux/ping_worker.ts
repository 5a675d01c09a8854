/** A data worker whose plane answers ICMP echo requests itself, so that a `ping` in the namespace tests the way in and out of the TUN device. */
import { runDataWorker } from "../../../../agent/driver/data_worker_loop.ts";
import type { PlaneCommand, PlaneIo } from "../../../../agent/data/plane.ts";
import { PlainPlane } from "./plain_plane.ts";

class PingPlane extends PlainPlane {
  readonly #io: PlaneIo;
  #answered = 0;

  constructor(io: PlaneIo) {
    super();
    this.#io = io;
  }

  handleCommand(command: PlaneCommand): void {
    if (command.type === "read_counters") {
      this.#io.report({ type: "counters", peers: [], drops: { answered: this.#answered } });
    }
  }

  override handlePacket(packet: Uint8Array): void {
    const is4 = packet[0] !== undefined && packet[0] >> 4 === 4;
    // Swap source and destination; the checksums over both stay right.
    const [at, size] = is4 ? [12, 4] : [8, 16];
    const icmp = is4 ? 20 : 40;
    const [request, reply] = is4 ? [8, 0] : [128, 129];
    if (packet[is4 ? 9 : 6] !== (is4 ? 1 : 58) || packet[icmp] !== request) return;
    const source = packet.slice(at, at + size);
    packet.copyWithin(at, at + size, at + 2 * size);
    packet.set(source, at + size);
    packet[icmp] = reply;
    // RFC 1624: the checksum moves by what its first word lost or gained.
    const checksum = (packet[icmp + 2] ?? 0) * 256 + (packet[icmp + 3] ?? 0);
    let sum = (~checksum & 0xffff) + (~(request * 256) & 0xffff) + reply * 256;
    sum = (sum & 0xffff) + (sum >>> 16);
    sum = (sum & 0xffff) + (sum >>> 16);
    packet[icmp + 2] = (~sum >> 8) & 0xff;
    packet[icmp + 3] = ~sum & 0xff;
    this.#io.deliver(packet);
    this.#answered++;
  }
}

await runDataWorker((io) => new PingPlane(io));
