/** Carries out `service install|uninstall|status`, and says what was done. */
import { HostsFile } from "../../driver/names/hosts_file.ts";
import { readIfPresent } from "../../state/atomic_file.ts";
import { EXIT, UserError } from "../../state/user_error.ts";
import type { Host } from "../host.ts";
import type { Invocation, ServiceInstallOptions } from "../invocation.ts";
import { joinKey } from "../values.ts";
import { Service, type ServiceStatus, thisMachine } from "./service.ts";
import { UNIT_NAME } from "./unit.ts";

type ServiceInvocation = Extract<Invocation, { command: `service ${string}` }>;

export async function runService(invocation: ServiceInvocation, host: Host): Promise<number> {
  const service = new Service(thisMachine(host.account.uid === 0));
  const tell = (done: readonly string[]): number => {
    host.out(done.map((line) => `${line}\n`).join(""));
    return EXIT.ok;
  };
  if (invocation.command === "service install") {
    const { url, name } = invocation.options;
    return tell(await service.install({ url, name, key: keyOf(invocation.options) }));
  }
  if (invocation.command === "service uninstall") {
    const done = await service.uninstall(invocation.options.purge);
    // What an agent that was killed has left.
    if (invocation.options.purge) new HostsFile().clear();
    return tell(done);
  }
  const status = await service.status();
  host.out(
    invocation.options.json ? `${JSON.stringify({ schema: 1, unit: UNIT_NAME, ...status })}\n` : inWords(status),
  );
  return status.isActive ? EXIT.ok : EXIT.agentNotRunning;
}

function inWords({ isInstalled, isEnabled, state }: ServiceStatus): string {
  if (!isInstalled) return 'The service is not installed; "tunnelmesh-agent service install" does it\n';
  return `${UNIT_NAME} is ${state}, and ${isEnabled ? "starts" : "does not start"} with the machine\n`;
}

function keyOf({ key, keyFile }: ServiceInstallOptions): string | undefined {
  if (keyFile === undefined) return key?.trim();
  const text = readIfPresent(keyFile);
  if (text !== undefined) return joinKey(text.trim()).text;
  throw new UserError(EXIT.badConfiguration, `The file ${keyFile} of --key-file does not exist`);
}
