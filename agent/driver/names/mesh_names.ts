/**
 * Makes `nas` and `nas.mesh` resolve for every program of this machine, while the agent has a TUN device.
 *
 * A resolver for the mesh listens on our own mesh addresses. What sends the machine's programs there is, in this order: systemd-resolved;
 * else a block in /etc/hosts. resolv.conf is never touched. Each is believed only once a look-up by the system's own resolver has found
 * this very machine. Everything is taken back when the agent stops, also when it is killed (hosts_guard.ts), and at the next start at the latest.
 */
import type { Log } from "../../log.ts";
import type { NamesStatus } from "../../local/contract.ts";
import { MESH_DOMAIN, type Member, Zone } from "../../dns/zone.ts";
import { systemReason } from "../../state/user_error.ts";
import { Netlink } from "../linux/netlink.ts";
import { coverageOf, withoutRoutesOf } from "../linux/routing.ts";
import { DnsSockets } from "./dns_sockets.ts";
import { HostsFile, isHostsFileOurs } from "./hosts_file.ts";
import { HostsGuard } from "./hosts_guard.ts";
import { installInResolved, isResolvedHere, removeFromResolved, updateResolvedDomains } from "./resolved.ts";

/** Changes of members come in bursts. */
const SETTLE_MS = 200;
/** A look-up that takes longer went to a server that does not know us. */
const LOOKUP_TIMEOUT_MS = 1500;
/** resolved takes a moment to see that the new link is up. */
const LOOKUP_ATTEMPTS = 3;

/** What names need to know of the agent. */
export interface NamesSource {
  /** The TUN device; undefined while there is none. */
  device(): string | undefined;
  self(): Member | undefined;
  peers(): readonly Member[];
  /** Calls back after anything may have changed, until the returned function is called. */
  listen(listener: () => void): () => void;
}

type State =
  | { readonly state: "none"; readonly message: string }
  | { readonly state: "resolved"; readonly isBareEnough: boolean; readonly device: string; readonly reverse: string }
  | { readonly state: "hosts"; readonly isBareEnough: boolean; readonly members: string }
  /** The resolver answers, if it is there, but nothing sends programs to it. */
  | { readonly state: "manual"; readonly message: string };

export class MeshNames {
  readonly #source: NamesSource;
  readonly #log: Log;
  readonly #hosts = new HostsFile();
  readonly #guard: HostsGuard;
  #zone = new Zone([]);
  /** Members and device at the last update. */
  #seen = "";
  #sockets: DnsSockets | undefined;
  #state: State;
  #stopListening = (): void => {};
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** One change after the other. */
  #work: Promise<void> = Promise.resolve();

  private constructor(source: NamesSource, log: Log, state: State, stateDir: string) {
    this.#source = source;
    this.#log = log;
    this.#guard = new HostsGuard(stateDir);
    this.#state = state;
  }

  /** @param isWanted false: `--no-dns` */
  static start(source: NamesSource, log: Log, isWanted: boolean, stateDir: string): MeshNames {
    const message = isWanted
      ? "there is no network device, so names work in this program's own commands only"
      : "switched off by --no-dns";
    const names = new MeshNames(source, log, { state: "none", message }, stateDir);
    names.#clearHosts();
    if (!isWanted) return names;
    names.#stopListening = source.listen(() => {
      names.#timer ??= setTimeout(() => {
        names.#timer = undefined;
        names.#work = names.#work.then(() => names.#update());
      }, SETTLE_MS);
    });
    return names;
  }

  get status(): NamesStatus {
    const state = this.#state;
    const server = this.#sockets?.addresses[0] ?? null;
    const how = state.state === "resolved" ? "systemd-resolved" : state.state === "hosts" ? "hosts file" : null;
    const isBareEnough = "isBareEnough" in state && state.isBareEnough;
    return { domain: MESH_DOMAIN, how, isBareEnough, server, message: "message" in state ? state.message : null };
  }

  async stop(): Promise<void> {
    this.#stopListening();
    clearTimeout(this.#timer);
    await this.#work;
    if (this.#state.state === "resolved") {
      // The device is about to go, and its settings with it: this is for one that stays.
      await removeFromResolved(this.#state.device).catch(() => {});
    }
    if (this.#state.state === "hosts") this.#clearHosts();
    this.#sockets?.close();
  }

  async #update(): Promise<void> {
    const self = this.#source.self();
    const device = this.#source.device();
    if (self === undefined || device === undefined) return;
    const members = [self, ...this.#source.peers()].map(({ name, meshIPv4, meshIPv6 }) => ({
      name,
      meshIPv4,
      meshIPv6,
    }));
    const seen = JSON.stringify([device, members]);
    if (seen === this.#seen) return;
    this.#seen = seen;
    try {
      this.#zone = new Zone(reachable(members, device));
      if (this.#state.state === "none") this.#state = await this.#install(self, device);
      else if (this.#state.state === "resolved") await this.#updateResolved(device);
      else if (this.#state.state === "hosts") this.#updateHosts();
    } catch (error) {
      this.#log.warn(`Cannot update the names of the mesh on this machine: ${systemReason(error)}`);
    }
  }

  async #install(self: Member, device: string): Promise<State> {
    const own = [self.meshIPv4, self.meshIPv6].filter((ip) => ip !== undefined);
    const problems: string[] = [];
    try {
      this.#sockets = await DnsSockets.open(own, () => this.#zone);
    } catch (error) {
      problems.push(lowerCase(systemReason(error)));
    }
    if (this.#sockets !== undefined && isResolvedHere()) {
      try {
        await installInResolved(device, this.#sockets.addresses, this.#zone);
        if (await isFound(self, `${self.name}.${MESH_DOMAIN}`)) {
          const isBareEnough = await isFound(self, self.name);
          return { state: "resolved", isBareEnough, device, reverse: this.#reverse };
        }
        problems.push("programs of this machine do not ask systemd-resolved");
        await removeFromResolved(device);
      } catch (error) {
        problems.push(`systemd-resolved: ${systemReason(error)}`);
      }
    } else if (this.#sockets !== undefined) problems.push("there is no systemd-resolved");
    if (!isHostsFileOurs()) problems.push("/etc/hosts belongs to another network namespace");
    else {
      try {
        this.#guard.start();
        this.#updateHosts();
        if (await isFound(self, `${self.name}.${MESH_DOMAIN}`)) {
          return { state: "hosts", isBareEnough: await isFound(self, self.name), members: this.#members };
        }
        this.#clearHosts();
        problems.push("programs of this machine do not look into /etc/hosts");
      } catch (error) {
        problems.push(`/etc/hosts: ${systemReason(error)}`);
      }
    }
    const message = `not for other programs: ${problems.join("; ")}`;
    this.#log.info(`Names of the mesh resolve in this program only: ${problems.join("; ")}`);
    return { state: "manual", message };
  }

  async #updateResolved(device: string): Promise<void> {
    const reverse = this.#reverse;
    if (this.#state.state !== "resolved" || this.#state.reverse === reverse) return;
    await updateResolvedDomains(device, this.#zone);
    this.#state = { ...this.#state, reverse };
  }

  #updateHosts(): void {
    const members = this.#members;
    if (this.#state.state === "hosts" && this.#state.members === members) return;
    this.#hosts.write(this.#zone.members);
    if (this.#state.state === "hosts") this.#state = { ...this.#state, members };
  }

  #clearHosts(): void {
    try {
      if (isHostsFileOurs()) this.#hosts.clear();
      this.#guard.stop();
    } catch (error) {
      this.#log.debug(`Cannot take the agent's names out of /etc/hosts: ${systemReason(error)}`);
    }
  }

  get #reverse(): string {
    return this.#zone.reverseNames.join(" ");
  }

  get #members(): string {
    return JSON.stringify(this.#zone.members);
  }
}

/**
 * Without the addresses that this machine reaches in another way (mesh_routes.ts): a name must not lead to whoever has that address in the
 * other network.
 */
function reachable(members: readonly Member[], device: string): readonly Member[] {
  const netlink = new Netlink();
  try {
    const index = netlink.linkIndex(device);
    const snapshot = withoutRoutesOf(netlink.snapshot(), index);
    const unlessCovered = (ip: string | undefined): string | undefined =>
      ip === undefined || coverageOf(snapshot, ip, index) !== undefined ? undefined : ip;
    return members.map(({ name, meshIPv4, meshIPv6 }) => ({
      name,
      meshIPv4: unlessCovered(meshIPv4),
      meshIPv6: unlessCovered(meshIPv6),
    }));
  } finally {
    netlink.close();
  }
}

/** Asks as any program of this machine does. */
async function isFound(self: Member, name: string): Promise<boolean> {
  for (let attempt = 0; attempt < LOOKUP_ATTEMPTS; attempt++) {
    const timeout = Bun.sleep(LOOKUP_TIMEOUT_MS).then(() => []);
    const lookup = Bun.dns.lookup(name, { backend: "libc" }).catch(() => []);
    const found = await Promise.race([lookup, timeout]);
    if (found.some(({ address }) => address === self.meshIPv4 || address === self.meshIPv6)) return true;
    await Bun.sleep(SETTLE_MS);
  }
  return false;
}

const lowerCase = (text: string): string => text.charAt(0).toLowerCase() + text.slice(1);
