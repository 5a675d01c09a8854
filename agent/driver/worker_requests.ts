/** What the main thread asks of the data worker and waits for: sockets, the TUN device, fresh counters. */
import { DATA_LEG_IPV4, DATA_LEG_IPV6 } from "../node/legs.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import type { DataWorkerHost } from "./data_worker_host.ts";
import type { Report } from "./engine.ts";

const OPEN_TIMEOUT_MS = 5000;
/** `status` is for people, who should not wait for a figure. */
const COUNTERS_TIMEOUT_MS = 200;
const NO_ANSWER = "no answer from the data worker";

export class WorkerRequests {
  readonly #worker: DataWorkerHost;
  readonly #waiters = new Set<(report: Report) => void>();

  constructor(worker: DataWorkerHost) {
    this.#worker = worker;
  }

  /** Every report has to come by here. */
  handle(report: Report): void {
    for (const waiter of this.#waiters) waiter(report);
  }

  /**
   * A socket per address family, with one number if it can be had.
   *
   * @param udpPort 0 or undefined: any
   * @throws UserError where the wished port is taken, or there is no UDP at all
   */
  async openSockets(udpPort: number | undefined): Promise<void> {
    const ipv4 = await this.#openUdp(DATA_LEG_IPV4, 4, udpPort ?? 0);
    if (typeof ipv4 === "string" && udpPort !== undefined && udpPort !== 0) {
      // The worker's own words begin with what failed, address and all.
      const why = ipv4.slice(ipv4.indexOf(": ") + 2);
      throw new UserError(EXIT.failed, `Cannot bind UDP port ${udpPort}: ${why}; choose another with --udp-port`);
    }
    const wish = typeof ipv4 === "number" ? ipv4 : (udpPort ?? 0);
    // The same number for both families is easier to forward, but not worth failing for.
    let ipv6 = await this.#openUdp(DATA_LEG_IPV6, 6, wish);
    if (typeof ipv6 === "string") ipv6 = await this.#openUdp(DATA_LEG_IPV6, 6, 0);
    if (typeof ipv4 === "string" && typeof ipv6 === "string") {
      throw new UserError(EXIT.failed, `Cannot open a UDP socket: ${ipv4}`);
    }
  }

  /** The device's name, or what went wrong. Without `name`, the first free one of the usual kind. */
  async openTun(name: string | undefined): Promise<{ readonly name: string } | { readonly problem: string }> {
    this.#worker.send({ type: "open_tun", name });
    const report = await this.#next(({ type }) => type === "tun_opened" || type === "tun_failed");
    if (report?.type === "tun_opened") return { name: report.name };
    return { problem: report?.type === "tun_failed" ? report.message : NO_ANSWER };
  }

  /** Waits for fresh counters; those of a data path that is held up stay as they were. */
  async refreshCounters(): Promise<void> {
    const counted = this.#next(({ type }) => type === "counters", COUNTERS_TIMEOUT_MS);
    this.#worker.send({ type: "read_counters" });
    await counted;
  }

  /** The local port, or what went wrong. */
  async #openUdp(leg: number, family: 4 | 6, port: number): Promise<number | string> {
    this.#worker.send({ type: "open_udp", leg, family, port });
    const report = await this.#next(
      (candidate) => (candidate.type === "udp_opened" || candidate.type === "udp_failed") && candidate.leg === leg,
    );
    if (report?.type === "udp_opened") return report.localPort;
    return report?.type === "udp_failed" ? report.message : NO_ANSWER;
  }

  async #next(accepts: (report: Report) => boolean, timeoutMs = OPEN_TIMEOUT_MS): Promise<Report | undefined> {
    const { promise, resolve } = Promise.withResolvers<Report | undefined>();
    const waiter = (report: Report): void => {
      if (accepts(report)) resolve(report);
    };
    this.#waiters.add(waiter);
    const timer = setTimeout(() => resolve(undefined), timeoutMs);
    const report = await promise;
    clearTimeout(timer);
    this.#waiters.delete(waiter);
    return report;
  }
}
