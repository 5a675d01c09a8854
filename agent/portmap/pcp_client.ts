/** A mapping by PCP (RFC 6887): one nonce for its whole life, which an answer must show. */
import type { TransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import {
  type ClientAction,
  type MappingClient,
  type Outcome,
  Retransmission,
  type Target,
  WISHED_LIFETIME,
} from "./client.ts";
import { Epoch } from "./epoch.ts";
import { decodeNatPmpResponse } from "./nat_pmp.ts";
import {
  decodePcpResponse,
  encodePcpAnnounce,
  encodePcpMap,
  GATEWAY_PORT,
  NONCE_BYTES,
  pcpRefusal,
  type PcpResponse,
  UNSUPPORTED_VERSION,
} from "./pcp.ts";

export class PcpClient implements MappingClient {
  readonly protocol = "pcp";
  isSpoken: boolean | undefined;
  readonly #target: Target;
  readonly #nonce: Uint8Array;
  readonly #epoch = new Epoch();
  readonly #search = new Retransmission();
  readonly #request = new Retransmission();
  readonly #actions: ClientAction[] = [];
  #external: TransportAddress | undefined;
  #outcome: Outcome | undefined;

  constructor(target: Target, random: (bytes: number) => Uint8Array) {
    this.#target = target;
    this.#nonce = random(NONCE_BYTES);
  }

  search(now: Instant): void {
    this.isSpoken = undefined;
    this.check(now);
  }

  request(now: Instant): void {
    this.#request.start(now);
    this.handleTimeout(now);
  }

  check(now: Instant): void {
    this.#search.start(now);
    this.handleTimeout(now);
  }

  release(): void {
    this.#request.stop();
    this.#search.stop();
    this.#sendMap(0);
  }

  handleDatagram(from: TransportAddress, bytes: Uint8Array, now: Instant): boolean {
    // Announcements come from the server's port too (RFC 6887 §14.1.3).
    if (from.port !== GATEWAY_PORT) return false;
    // What speaks only NAT-PMP answers our requests in its own version (RFC 6887 §9).
    if (decodeNatPmpResponse(bytes)?.result === UNSUPPORTED_VERSION) {
      this.#search.stop();
      this.isSpoken ??= false;
      return true;
    }
    const response = decodePcpResponse(bytes);
    // Likewise this answers a request of NAT-PMP.
    if (response === undefined || response.result === UNSUPPORTED_VERSION) return false;
    this.#search.stop();
    this.isSpoken = true;
    if (response.map === undefined) {
      if (this.#epoch.hasRestarted(response.epoch, now)) this.#outcome ??= { type: "lost" };
    } else this.#handleMap(response, response.map, now);
    return true;
  }

  handleHttp(): void {
    // PCP has none.
  }

  handleTimeout(now: Instant): void {
    for (let due = this.#search.next(now); due !== undefined; due = this.#search.next(now)) {
      if (due === "send") this.#send(encodePcpAnnounce(this.#target.local));
      // Silence at a check says little, the gateway may be restarting: whether the mapping lives shows when it is renewed.
      else this.isSpoken ??= false;
    }
    for (let due = this.#request.next(now); due !== undefined; due = this.#request.next(now)) {
      if (due === "send") this.#sendMap(WISHED_LIFETIME);
      else this.#outcome = { type: "silent" };
    }
  }

  deadline(): Instant | undefined {
    return earliest(this.#search.deadline(), this.#request.deadline());
  }

  poll(): ClientAction | undefined {
    return this.#actions.shift();
  }

  outcome(): Outcome | undefined {
    const outcome = this.#outcome;
    this.#outcome = undefined;
    return outcome;
  }

  #handleMap(response: PcpResponse, map: NonNullable<PcpResponse["map"]>, now: Instant): void {
    const isOurs = equalBytes(map.nonce, this.#nonce) && map.internalPort === this.#target.port;
    if (!isOurs || !this.#request.isRunning) return;
    this.#request.stop();
    // This very answer has made the mapping anew, if it was lost.
    this.#epoch.hasRestarted(response.epoch, now);
    if (response.result !== 0) this.#outcome = { type: "refused", reason: pcpRefusal(response.result) };
    else if (response.lifetime === 0 || map.external.port === 0) {
      this.#outcome = { type: "refused", reason: "it gave a mapping of no use" };
    } else {
      this.#external = map.external;
      this.#outcome = { type: "leased", lease: { external: map.external, lifetimeMs: response.lifetime * 1000 } };
    }
  }

  #sendMap(lifetime: number): void {
    const { local, port } = this.#target;
    if (port === undefined) return;
    // The same number outside as inside is easiest to recognise, but not worth a refusal: no PREFER_FAILURE option.
    const external = this.#external ?? { ip: "0.0.0.0", port };
    this.#send(encodePcpMap({ local, nonce: this.#nonce, internalPort: port, external, lifetime }));
  }

  #send(bytes: Uint8Array): void {
    this.#actions.push({ type: "send", to: { ip: this.#target.gateway, port: GATEWAY_PORT }, bytes });
  }
}
