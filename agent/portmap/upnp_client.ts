/**
 * A mapping by UPnP: found by SSDP, read from the gateway's description, made by SOAP, on IGD v1 and v2.
 *
 * Routers differ in what they accept, so one call follows another until one is taken: any free port (v2 only), this very port,
 * another port when somebody has it, for ever when it knows no leases.
 */
import type { TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import {
  type ClientAction,
  type MappingClient,
  type Outcome,
  type RefusalReason,
  Retransmission,
  type Target,
  WISHED_LIFETIME,
} from "./client.ts";
import { decodeResponse, encodeRequest, type HttpResponse, type Url } from "./http.ts";
import {
  decodeAnswer,
  decodeDescription,
  encodeCall,
  FAULT,
  ipField,
  portField,
  type SoapAnswer,
  type SoapArguments,
  type WanService,
} from "./soap.ts";
import { decodeSearchAnswer, encodeSearches, SSDP_GROUP, SSDP_PORT } from "./ssdp.ts";

/** Calls for one mapping; a router that refuses so many wishes refuses. */
const MAX_CALLS = 8;
const FIRST_PORT = 1024;
const ADD_ANY = "AddAnyPortMapping";
const ADD = "AddPortMapping";

type Step =
  | { readonly type: "idle" }
  | { readonly type: "description"; readonly location: Url }
  /** Services are tried in their order, until one has an address. */
  | { readonly type: "address"; readonly service: number }
  | {
      readonly type: "mapping";
      readonly service: number;
      readonly externalIp: string;
      readonly action: typeof ADD | typeof ADD_ANY;
      readonly port: number;
      /** Seconds; 0 is for ever. */
      readonly lease: number;
      readonly calls: number;
    };

export class UpnpClient implements MappingClient {
  readonly protocol = "upnp";
  isSpoken: boolean | undefined;
  readonly #target: Target;
  readonly #random: (bytes: number) => Uint8Array;
  readonly #nextHttpId: () => number;
  readonly #search = new Retransmission();
  readonly #actions: ClientAction[] = [];
  #services: readonly WanService[] = [];
  #step: Step = { type: "idle" };
  #httpId: number | undefined;
  /** What a success has taught: for the renewal, and to remove it. */
  #held: { readonly service: WanService; readonly external: TransportAddress; readonly lease: number } | undefined;
  #outcome: Outcome | undefined;

  /** @param nextHttpId numbers exchanges, so that one of an earlier client is told apart */
  constructor(target: Target, random: (bytes: number) => Uint8Array, nextHttpId: () => number) {
    this.#target = target;
    this.#random = random;
    this.#nextHttpId = nextHttpId;
  }

  search(now: Instant): void {
    this.isSpoken = undefined;
    this.#step = { type: "idle" };
    this.#search.start(now);
    this.handleTimeout(now);
  }

  request(): void {
    this.#askAddress(0);
  }

  /** Adding what is there already changes nothing, and brings back what is not. */
  check(): void {
    if (this.#step.type === "idle") this.request();
  }

  release(): void {
    this.#search.stop();
    const mapping = this.#step.type === "mapping" ? this.#step : undefined;
    const service = this.#held?.service ?? this.#services[mapping?.service ?? 0];
    const port = this.#held?.external.port ?? mapping?.port;
    this.#step = { type: "idle" };
    if (service === undefined || port === undefined) return;
    this.#call(service, "DeletePortMapping", { NewRemoteHost: "", NewExternalPort: port, NewProtocol: "UDP" });
  }

  handleDatagram(from: TransportAddress, bytes: Uint8Array): boolean {
    const location = decodeSearchAnswer(bytes, from.ip);
    if (location === undefined) return false;
    if (!this.#search.isRunning) return true;
    this.#search.stop();
    this.#step = { type: "description", location };
    this.#http(location, encodeRequest("GET", location));
    return true;
  }

  handleHttp(id: number, bytes: Uint8Array | undefined, now: Instant): void {
    if (id !== this.#httpId) return;
    this.#httpId = undefined;
    const response = bytes === undefined ? undefined : decodeResponse(bytes);
    const step = this.#step;
    switch (step.type) {
      case "idle":
        break;
      case "description":
        this.#handleDescription(step.location, response);
        break;
      case "address":
        this.#handleAddress(step.service, response);
        break;
      default:
        this.#handleMapping(step, response);
    }
    this.handleTimeout(now);
  }

  handleTimeout(now: Instant): void {
    for (let due = this.#search.next(now); due !== undefined; due = this.#search.next(now)) {
      if (due === "gave up") this.isSpoken ??= false;
      else {
        // To the gateway itself too (Device Architecture 1.1 §1.3.2): some networks carry no multicast.
        for (const ip of [SSDP_GROUP, this.#target.gateway]) {
          for (const bytes of encodeSearches(ip)) {
            this.#actions.push({ type: "send", to: { ip, port: SSDP_PORT }, bytes });
          }
        }
      }
    }
  }

  deadline(): Instant | undefined {
    return this.#search.deadline();
  }

  poll(): ClientAction | undefined {
    return this.#actions.shift();
  }

  outcome(): Outcome | undefined {
    const outcome = this.#outcome;
    this.#outcome = undefined;
    return outcome;
  }

  #handleDescription(location: Url, response: HttpResponse | undefined): void {
    this.#step = { type: "idle" };
    const services = response?.status === 200 ? decodeDescription(response.body, location) : [];
    this.#services = services;
    this.isSpoken = services.length > 0;
  }

  #askAddress(index: number): void {
    const service = this.#services[index];
    if (service === undefined) {
      this.#step = { type: "idle" };
      this.#outcome = { type: "refused", reason: "no address" };
      return;
    }
    this.#step = { type: "address", service: index };
    this.#call(service, "GetExternalIPAddress", {});
  }

  #handleAddress(index: number, response: HttpResponse | undefined): void {
    if (response === undefined) {
      this.#end({ type: "silent" });
      return;
    }
    const answer = decodeAnswer(response, "GetExternalIPAddress");
    const ip = answer?.ok === true ? ipField(answer.field("NewExternalIPAddress")) : undefined;
    const { port } = this.#target;
    const service = this.#services[index];
    if (port === undefined || service === undefined) {
      this.#step = { type: "idle" };
      return;
    }
    // A connection that is down says so.
    if (ip === undefined || ip === "0.0.0.0") {
      this.#askAddress(index + 1);
      return;
    }
    this.#add({
      type: "mapping",
      service: index,
      externalIp: ip,
      action: service.isVersion2 ? ADD_ANY : ADD,
      port: this.#held?.external.port ?? port,
      lease: this.#held?.lease ?? WISHED_LIFETIME,
      calls: 0,
    });
  }

  #add(step: Step & { readonly type: "mapping" }): void {
    const service = this.#services[step.service];
    if (service === undefined) return;
    this.#step = { ...step, calls: step.calls + 1 };
    this.#call(service, step.action, {
      NewRemoteHost: "",
      NewExternalPort: step.port,
      NewProtocol: "UDP",
      NewInternalPort: this.#target.port ?? 0,
      NewInternalClient: this.#target.local,
      NewEnabled: 1,
      NewPortMappingDescription: "TunnelMesh",
      NewLeaseDuration: step.lease,
    });
  }

  #handleMapping(step: Step & { readonly type: "mapping" }, response: HttpResponse | undefined): void {
    if (response === undefined) {
      this.#end({ type: "silent" });
      return;
    }
    const answer = decodeAnswer(response, step.action);
    const service = this.#services[step.service];
    if (answer?.ok === true && service !== undefined) {
      const reserved = step.action === ADD_ANY ? portField(answer.field("NewReservedPort")) : undefined;
      const external = { ip: step.externalIp, port: reserved ?? step.port };
      this.#held = { service, external, lease: step.lease };
      this.#end({ type: "leased", lease: { external, lifetimeMs: step.lease === 0 ? undefined : step.lease * 1000 } });
      return;
    }
    const fault = answer?.ok === false ? answer.fault : 0;
    const next = step.calls >= MAX_CALLS ? undefined : this.#instead(step, fault);
    if (next !== undefined) this.#add(next);
    else this.#end({ type: "refused", reason: refusal(answer) });
  }

  /** Another wish that this router may grant. */
  #instead(
    step: Step & { readonly type: "mapping" },
    fault: number,
  ): (Step & { readonly type: "mapping" }) | undefined {
    if (fault === FAULT.onlyPermanentLeases && step.lease > 0) return { ...step, lease: 0 };
    if (fault === FAULT.notAuthorized) return undefined;
    if (fault === FAULT.conflict) return { ...step, port: this.#otherPort() };
    if (step.action === ADD_ANY) return { ...step, action: ADD };
    // Version 1 routers that know no leases do not always say so.
    const isVague = fault === 0 || fault === FAULT.invalidArguments || fault === FAULT.actionFailed;
    return isVague && step.lease > 0 ? { ...step, lease: 0 } : undefined;
  }

  #otherPort(): number {
    const [high = 0, low = 0] = this.#random(2);
    return FIRST_PORT + (((high << 8) | low) % (65_536 - FIRST_PORT));
  }

  #end(outcome: Outcome): void {
    this.#step = { type: "idle" };
    this.#outcome = outcome;
  }

  #call(service: WanService, action: string, parameters: SoapArguments): void {
    this.#http(service.control, encodeCall(service, action, parameters));
  }

  #http({ ip, port }: Url, bytes: Uint8Array): void {
    this.#httpId = this.#nextHttpId();
    this.#actions.push({ type: "http", id: this.#httpId, to: { ip, port }, bytes });
  }
}

function refusal(answer: SoapAnswer | undefined): RefusalReason {
  if (answer === undefined || answer.ok) return "its answer makes no sense";
  if (answer.fault === FAULT.notAuthorized) return "it forbids this";
  return answer.fault === 0 ? "it refused" : `it refused with error ${answer.fault}`;
}
