/**
 * A host of the lab with name resolution of its own: /etc/hosts, /etc/nsswitch.conf, resolv.conf and /run in a mount namespace, a DNS server
 * that stands for the world outside, and on demand the real systemd-resolved with a D-Bus of its own.
 */
import { existsSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { LabProcess } from "./process.ts";
import type { Host, Lab } from "./topology.ts";

const UPSTREAM = fileURLToPath(new URL("dns_upstream.ts", import.meta.url));
const UPSTREAM_IP = "127.0.0.2";
const START_TIMEOUT_MS = 5000;
/** Where systemd-resolved is: installed, or unpacked by .ci/run, since installing it would replace the resolv.conf of the machine. */
const ROOTS = ["/", "/usr/local/lib/tunnelmesh-lab"];
const resolvedRoot = ROOTS.find((root) => existsSync(join(root, "lib/systemd/systemd-resolved")));

/** Why systemd-resolved cannot be run; undefined: it can. */
export const noResolvedBecause =
  resolvedRoot === undefined
    ? "systemd-resolved is not there"
    : Bun.which("dbus-daemon") === null
      ? "dbus-daemon is not installed"
      : undefined;

const HOSTS = "127.0.0.1 localhost\n192.0.2.99 printer\n";
const BUS_CONFIGURATION = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
<allow send_type="method_call"/></policy>
</busconfig>
`;
/** Enters the mounts and waits; everything else joins it by nsenter. */
const HOLD = `
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/systemd/resolve
cp -a /etc "$1/etc"
for file in hosts resolv.conf nsswitch.conf passwd group; do rm -f "$1/etc/$file"; cp -a "$1/$file" "$1/etc/$file"; done
mount --bind "$1/etc" /etc
mount --bind /etc/hosts /etc/hosts
chown 990:990 /run/systemd/resolve
ip link set lo up
echo held
exec sleep 60
`;

export class NameWorld {
  readonly #host: Host;
  readonly #directory: string;
  readonly #holder: LabProcess;
  readonly #upstream: LabProcess;

  private constructor(host: Host, directory: string, holder: LabProcess, upstream: LabProcess) {
    this.#host = host;
    this.#directory = directory;
    this.#holder = holder;
    this.#upstream = upstream;
  }

  static async create(lab: Lab, host: Host, options: { readonly resolved: boolean }): Promise<NameWorld> {
    const directory = lab.directory("names");
    const write = (file: string, text: string): void => writeFileSync(join(directory, file), text, { mode: 0o644 });
    write("hosts", HOSTS);
    // The link is what Debian's package makes: resolved keeps the search domains in that file.
    if (options.resolved) symlinkSync("/run/systemd/resolve/stub-resolv.conf", join(directory, "resolv.conf"));
    else write("resolv.conf", `nameserver ${UPSTREAM_IP}\noptions timeout:1 attempts:1\n`);
    write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
    write("passwd", `${readFileSync("/etc/passwd", "utf8")}systemd-resolve:x:990:990::/:/usr/sbin/nologin\n`);
    write("group", `${readFileSync("/etc/group", "utf8")}systemd-resolve:x:990:\n`);
    write("bus.conf", BUS_CONFIGURATION);
    write("resolved.conf", `[Resolve]\nDNS=${UPSTREAM_IP}\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\n`);
    const holder = host.spawn(["unshare", "-m", "--propagation", "private", "sh", "-ec", HOLD, "sh", directory]);
    await holder.waitFor("mounts", ({ text }) => (text === "held" ? true : undefined), START_TIMEOUT_MS);
    const enter = ["nsenter", "-t", `${holder.pid}`, "-m", "--"];
    const upstream = host.spawn([...enter, process.execPath, UPSTREAM, UPSTREAM_IP]);
    await upstream.waitFor("upstream", ({ text }) => (text === "ready" ? true : undefined), START_TIMEOUT_MS);
    const world = new NameWorld(host, directory, holder, upstream);
    if (options.resolved) await world.#startResolved();
    return world;
  }

  /** For `startAgent`. */
  get agentOptions(): { readonly prefix: readonly string[]; readonly env: Readonly<Record<string, string>> } {
    const bin = join(resolvedRoot ?? "/", "usr/bin");
    return { prefix: this.#enter, env: { PATH: `${bin}:${process.env["PATH"] ?? ""}` } };
  }

  get hosts(): string {
    return readFileSync(join(this.#directory, "etc", "hosts"), "utf8");
  }

  get hostsAtFirst(): string {
    return HOSTS;
  }

  get resolvConf(): string {
    return readFileSync(join(this.#directory, "etc", "resolv.conf"), "utf8");
  }

  /** What a program of this host gets for a name, or for an address; undefined: nothing. */
  async lookup(name: string, database: "hosts" | "ahostsv4" | "ahostsv6" = "hosts"): Promise<string | undefined> {
    const { code, stdout } = await this.#host.exec([...this.#enter, "getent", database, name]);
    return code === 0 ? stdout.split("\n")[0]?.replace(/\s+/g, " ").trim() : undefined;
  }

  async run(command: readonly string[]): Promise<string> {
    return this.#host.execChecked([...this.#enter, ...command], { env: this.agentOptions.env });
  }

  /** Names that the server outside was asked for. */
  get askedOutside(): readonly string[] {
    return this.#upstream.lines.flatMap(({ text }) => (text.startsWith("asked ") ? [text.slice(6)] : []));
  }

  get #enter(): readonly string[] {
    return ["nsenter", "-t", `${this.#holder.pid}`, "-m", "--"];
  }

  async #startResolved(): Promise<void> {
    const path = (file: string): string => join(this.#directory, file);
    this.#host.spawn([...this.#enter, "dbus-daemon", `--config-file=${path("bus.conf")}`, "--nofork", "--nopidfile"]);
    const program = join(resolvedRoot ?? "/", "lib/systemd/systemd-resolved");
    const script = `mkdir -p /run/systemd/resolved.conf.d; cp "$1" /run/systemd/resolved.conf.d/lab.conf; until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done; exec "$2"`;
    this.#host.spawn([...this.#enter, "sh", "-ec", script, "sh", path("resolved.conf"), program]);
    const giveUpAt = performance.now() + START_TIMEOUT_MS;
    while ((await this.lookup("up.example")) === undefined) {
      if (performance.now() > giveUpAt) throw new Error("systemd-resolved does not answer");
      await Bun.sleep(50);
    }
  }
}
