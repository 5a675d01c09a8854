/** A mapping by NAT-PMP (RFC 6886): the external address and the port come in two answers. */
import type { TransportAddress } from "../../shared/address.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import {
  type ClientAction,
  type MappingClient,
  type Outcome,
  type RefusalReason,
  Retransmission,
  type Target,
  WISHED_LIFETIME,
} from "./client.ts";
import { Epoch } from "./epoch.ts";
import {
  decodeNatPmpResponse,
  encodeNatPmpAddress,
  encodeNatPmpMap,
  natPmpRefusal,
  type NatPmpResponse,
} from "./nat_pmp.ts";
import { decodePcpResponse, GATEWAY_PORT, UNSUPPORTED_VERSION } from "./pcp.ts";

export class NatPmpClient implements MappingClient {
  readonly protocol = "nat-pmp";
  isSpoken: boolean | undefined;
  readonly #target: Target;
  readonly #epoch = new Epoch();
  readonly #search = new Retransmission();
  readonly #request = new Retransmission();
  readonly #actions: ClientAction[] = [];
  #externalIp: string | undefined;
  #externalPort: number | undefined;
  /** Why there is no external address. */
  #addressProblem: RefusalReason | undefined;
  #outcome: Outcome | undefined;

  constructor(target: Target) {
    this.#target = target;
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
    if (this.#target.port !== undefined) this.#send(encodeNatPmpMap(this.#target.port, 0, 0));
  }

  handleDatagram(from: TransportAddress, bytes: Uint8Array, now: Instant): boolean {
    if (from.port !== GATEWAY_PORT) return false;
    // What speaks only PCP answers our requests in its own version (RFC 6887 §9).
    if (decodePcpResponse(bytes)?.result === UNSUPPORTED_VERSION) {
      this.#search.stop();
      this.isSpoken ??= false;
      return true;
    }
    const response = decodeNatPmpResponse(bytes);
    if (response === undefined || response.result === UNSUPPORTED_VERSION) return false;
    this.isSpoken = true;
    if (response.type === "address") this.#handleAddress(response, now);
    else this.#handleMap(response, now);
    return true;
  }

  handleHttp(): void {
    // NAT-PMP has none.
  }

  handleTimeout(now: Instant): void {
    for (let due = this.#search.next(now); due !== undefined; due = this.#search.next(now)) {
      if (due === "send") this.#send(encodeNatPmpAddress());
      else this.isSpoken ??= false;
    }
    for (let due = this.#request.next(now); due !== undefined; due = this.#request.next(now)) {
      const { port } = this.#target;
      if (due === "gave up") this.#outcome = { type: "silent" };
      else if (port !== undefined) this.#send(encodeNatPmpMap(port, this.#externalPort ?? port, WISHED_LIFETIME));
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

  /** The answer to a search, or an announcement that nobody asked for (RFC 6886 §3.2.1). */
  #handleAddress({ result, epoch, ip }: NatPmpResponse & { readonly type: "address" }, now: Instant): void {
    this.#search.stop();
    const hasRestarted = this.#epoch.hasRestarted(epoch, now);
    const hasMoved = result === 0 && this.#externalIp !== undefined && ip !== this.#externalIp;
    this.#externalIp = result === 0 ? ip : undefined;
    this.#addressProblem = result === 0 ? undefined : natPmpRefusal(result);
    if (hasRestarted || hasMoved) this.#outcome ??= { type: "lost" };
  }

  #handleMap(response: NatPmpResponse & { readonly type: "map" }, now: Instant): void {
    const { result, epoch, internalPort, externalPort, lifetime } = response;
    if (internalPort !== this.#target.port || !this.#request.isRunning) return;
    this.#request.stop();
    this.#epoch.hasRestarted(epoch, now);
    if (result !== 0) this.#outcome = { type: "refused", reason: natPmpRefusal(result) };
    else if (this.#externalIp === undefined || externalPort === 0 || lifetime === 0) {
      this.#outcome = { type: "refused", reason: this.#addressProblem ?? "it gave a mapping of no use" };
    } else {
      this.#externalPort = externalPort;
      const external = { ip: this.#externalIp, port: externalPort };
      this.#outcome = { type: "leased", lease: { external, lifetimeMs: lifetime * 1000 } };
    }
  }

  #send(bytes: Uint8Array): void {
    this.#actions.push({ type: "send", to: { ip: this.#target.gateway, port: GATEWAY_PORT }, bytes });
  }
}
