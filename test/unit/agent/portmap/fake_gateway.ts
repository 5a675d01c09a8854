/**
 * A gateway for unit tests, in virtual time: speaks what it is told to, keeps a table of mappings with their leases, can refuse, fall
 * silent, restart, and count what it is asked.
 */
import { encodeResponse, gatewayResponse } from "./fake_upnp.ts";
import type { Protocol } from "../../../../agent/portmap/client.ts";
import { PortMapping } from "../../../../agent/portmap/port_mapping.ts";
import { ipBytes, type TransportAddress } from "../../../../shared/address.ts";
import { utf8, utf8Text } from "../../../../shared/bytes.ts";
import { after, type Instant, instant } from "../../../../shared/time.ts";
import { Reader, Writer } from "../../../../shared/wire/cursor.ts";

export const GATEWAY = "10.1.0.1";
export const LOCAL = "10.1.0.10";
export const PORT = 5000;
const DELAY_MS = 2;

export interface GatewayOptions {
  readonly speaks: readonly Protocol[];
  readonly externalIp?: string;
  /** Seconds given whatever is asked for. */
  readonly lifetime?: number;
  readonly pcpResult?: number;
  readonly natPmpResult?: number;
  /** Of WANIPConnection. */
  readonly version?: 1 | 2;
  /** Refuses leases with this error, 725 or some other. */
  readonly leaseFault?: number;
  /** External ports that are somebody else's. */
  readonly taken?: readonly number[];
  /** UPnP error for everything. */
  readonly fault?: number;
}

interface Entry {
  readonly external: number;
  readonly lease: number;
}

export class FakeGateway {
  options: GatewayOptions;
  isSilent = false;
  readonly machine: PortMapping;
  now: Instant = instant(1000);
  /** UDP mappings of the client: external port and seconds; 0 is for ever. */
  mappings: Entry[] = [];
  /** What came, in order: "pcp announce", "pcp map 7200", "nat-pmp address", "upnp AddPortMapping 5000 7200" ... */
  readonly asked: string[] = [];
  /** What the machine announced. */
  readonly changes: string[] = [];
  #startedAt: Instant = this.now;
  #answers: { readonly at: Instant; readonly deliver: (now: Instant) => void }[] = [];
  #randomByte = 1;

  constructor(options: GatewayOptions) {
    this.options = options;
    this.machine = new PortMapping((length) => new Uint8Array(length).map(() => this.#randomByte++ & 0xff));
  }

  /** @param port null asks only what is spoken */
  begin(port: number | null = PORT, withUpnp = true): void {
    const target = { gateway: GATEWAY, local: LOCAL, port: port ?? undefined };
    this.machine.setTarget(target, withUpnp, this.now);
    this.drain();
  }

  /** Lets time pass, with every answer and deadline on its way. */
  run(milliseconds: number): void {
    const end = after(this.now, milliseconds);
    for (let steps = 0; ; steps++) {
      if (steps > 100_000) throw new Error("The machine wakes without end");
      const answer = this.#answers.toSorted((a, b) => a.at - b.at)[0];
      const deadline = this.machine.deadline();
      const next = Math.min(answer?.at ?? Number.POSITIVE_INFINITY, deadline ?? Number.POSITIVE_INFINITY);
      if (next > end) break;
      this.now = instant(Math.max(this.now, next));
      if (answer !== undefined && answer.at <= this.now) {
        this.#answers = this.#answers.filter((other) => other !== answer);
        answer.deliver(this.now);
      } else this.machine.handleTimeout(this.now);
      this.drain();
    }
    this.now = end;
  }

  /** Loses every mapping; its epoch begins anew. */
  restart(): void {
    this.mappings = [];
    this.#startedAt = this.now;
  }

  /** As a server does when it has started (RFC 6887 §14.1.3, RFC 6886 §3.2.1). */
  announce(protocol: "pcp" | "nat-pmp" | "upnp"): void {
    if (protocol === "upnp") this.deliver(utf8("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n"), 1900);
    else this.deliver(protocol === "pcp" ? this.#pcp(0, 0) : this.#natPmpAddress(), 5351);
  }

  /** A datagram that reaches the machine now. */
  deliver(bytes: Uint8Array, port: number, ip = GATEWAY): void {
    this.machine.handleDatagram({ ip, port }, bytes, this.now);
    this.drain();
  }

  close(): void {
    this.machine.close(this.now);
    this.drain();
    this.run(10);
  }

  drain(): void {
    for (let action = this.machine.poll(); action !== undefined; action = this.machine.poll()) {
      if (action.type === "changed") {
        const { mapping } = action;
        this.changes.push(
          mapping === undefined ? "none" : `${mapping.protocol} ${mapping.external.ip}:${mapping.external.port}`,
        );
      } else if (action.type === "send") this.#handleDatagram(action.to, action.bytes);
      else this.#handleHttp(action.id, action.bytes);
    }
  }

  #answer(bytes: Uint8Array, port: number): void {
    if (this.isSilent) return;
    const deliver = (now: Instant): void => this.machine.handleDatagram({ ip: GATEWAY, port }, bytes, now);
    this.#answers.push({ at: after(this.now, DELAY_MS), deliver });
  }

  #handleDatagram(to: TransportAddress, bytes: Uint8Array): void {
    const { speaks } = this.options;
    if (to.port === 1900) {
      this.asked.push(`ssdp ${to.ip === GATEWAY ? "gateway" : "group"}`);
      const target = /\nST: (\S+)/.exec(utf8Text(bytes) ?? "")?.[1] ?? "";
      if (speaks.includes("upnp") && target.endsWith(":1")) {
        this.#answer(utf8(`HTTP/1.1 200 OK\r\nST: ${target}\r\nLOCATION: http://${GATEWAY}:80/desc.xml\r\n\r\n`), 1900);
      }
      return;
    }
    const reader = new Reader(bytes);
    if (reader.u8() === 2) this.#handlePcp(reader);
    else this.#handleNatPmp(reader);
  }

  #handlePcp(reader: Reader): void {
    const opcode = reader.u8();
    reader.skip(2);
    const lifetime = reader.u32();
    reader.skip(16);
    const rest = reader.rest();
    this.asked.push(opcode === 0 ? "pcp announce" : `pcp map ${lifetime}`);
    if (!this.options.speaks.includes("pcp")) {
      // RFC 6887 Appendix A: a server of NAT-PMP only says that it does not know this version.
      if (this.options.speaks.includes("nat-pmp"))
        this.#answer(Uint8Array.of(0, 0x80 + opcode, 0, 1, 0, 0, 0, 0), 5351);
      return;
    }
    if (opcode === 0) {
      this.#answer(this.#pcp(0, 0), 5351);
      return;
    }
    const result = this.options.pcpResult ?? 0;
    const view = new Reader(rest);
    const nonce = view.bytes(12);
    view.skip(4);
    const internalPort = view.u16();
    const wished = view.u16();
    const port = result === 0 ? this.#map(wished, lifetime) : 0;
    const data = new Writer(36)
      .bytes(nonce)
      .u8(17)
      .zeros(3)
      .u16(internalPort)
      .u16(port)
      .bytes(ipBytes(this.#externalIp))
      .finish();
    this.#answer(Uint8Array.of(...this.#pcp(1, this.#granted(lifetime), result), ...data), 5351);
  }

  #pcp(opcode: number, lifetime: number, result = 0): Uint8Array {
    return new Writer(24)
      .u8(2)
      .u8(0x80 + opcode)
      .u8(0)
      .u8(result)
      .u32(lifetime)
      .u32(this.#epoch)
      .zeros(12)
      .finish();
  }

  #handleNatPmp(reader: Reader): void {
    const opcode = reader.u8();
    const result = this.options.natPmpResult ?? 0;
    if (opcode === 0) {
      this.asked.push("nat-pmp address");
      if (this.options.speaks.includes("nat-pmp")) this.#answer(this.#natPmpAddress(), 5351);
      return;
    }
    reader.skip(2);
    const internalPort = reader.u16();
    const wished = reader.u16();
    const lifetime = reader.u32();
    this.asked.push(`nat-pmp map ${lifetime}`);
    const port = result === 0 ? this.#map(wished, lifetime) : 0;
    const head = new Writer(16).u8(0).u8(0x81).u16(result).u32(this.#epoch);
    this.#answer(head.u16(internalPort).u16(port).u32(this.#granted(lifetime)).finish(), 5351);
  }

  #natPmpAddress(): Uint8Array {
    return new Writer(12).u8(0).u8(0x80).u16(0).u32(this.#epoch).bytes(ipBytes(this.#externalIp).subarray(12)).finish();
  }

  #handleHttp(id: number, bytes: Uint8Array): void {
    const { asked, response } = gatewayResponse(bytes, this.options, (wished, lease) => this.#map(wished, lease));
    this.asked.push(`upnp ${asked}`);
    const isSilent = this.isSilent || !this.options.speaks.includes("upnp");
    const answer = isSilent ? undefined : encodeResponse(response);
    const at = after(this.now, isSilent ? 3000 : DELAY_MS);
    this.#answers.push({ at, deliver: (now) => this.machine.handleHttp(id, answer, now) });
  }

  #map(wished: number, lease: number): number {
    this.mappings = [];
    if (lease === -1) return 0;
    const external = this.options.taken?.includes(wished) === true ? wished + 1 : wished;
    if (lease > 0 || wished === external) this.mappings.push({ external, lease });
    if (lease === 0 && !this.options.speaks.includes("upnp")) this.mappings = [];
    return external;
  }

  #granted = (asked: number): number => (asked === 0 ? 0 : (this.options.lifetime ?? asked));

  get #externalIp(): string {
    return this.options.externalIp ?? "198.51.100.10";
  }

  get #epoch(): number {
    return Math.floor((this.now - this.#startedAt) / 1000);
  }
}
