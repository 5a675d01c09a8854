/** A lab leaves nothing behind: neither when it ends in order nor when its owner exits or is killed. */
import { existsSync, readFileSync } from "node:fs";
import { expect, it, vi } from "vitest";
import { labNamespaces, removeStaleLabs } from "./namespace.ts";
import { LabProcess } from "./process.ts";
import { createLab } from "./topology.ts";

/** A process that makes a lab with a sleeping program in it, prints the program's pid, and then does as told. */
const owner = (then: string): LabProcess =>
  new LabProcess("owner", [
    process.execPath,
    "-e",
    `const { createLab } = await import(${JSON.stringify(`${import.meta.dirname}/topology.ts`)});
     const lab = await createLab({ sites: [{ nat: "portrestricted" }], roundTripMs: 10 });
     console.log(lab.directory("state"));
     console.log(lab.site(1).host.spawn(["sleep", "60"]).pid);
     ${then}`,
  ]);

const sleeperPid = async (process: LabProcess): Promise<number> =>
  process.waitFor("pid", ({ text }) => (/^\d+$/.test(text) ? Number(text) : undefined), 10_000);

const directoryOf = async (process: LabProcess): Promise<string> =>
  process.waitFor("directory", ({ text }) => (text.startsWith("/") ? text : undefined), 10_000);

const ownedBy = (pid: number): string[] =>
  labNamespaces().flatMap((namespace) => (namespace.pid === pid ? [namespace.name] : []));

it("destroy removes the namespaces and ends the programs in them", async () => {
  const lab = await createLab({ sites: [{ nat: "open" }, { nat: "fullcone", hosts: 2 }], roundTripMs: 10 });
  const sleeper = lab.site(2).host.spawn(["sh", "-c", "sleep 60 & sleep 60"]);
  expect(ownedBy(process.pid)).toHaveLength(6);
  await lab.destroy();
  expect(ownedBy(process.pid)).toEqual([]);
  expect(await sleeper.exited).not.toBe(0);
});

it("an owner that exits without destroy takes its lab along", async () => {
  const child = owner("process.exit(0);");
  const [sleeper, directory] = [await sleeperPid(child), await directoryOf(child)];
  await child.exited;
  expect(existsSync(directory)).toBe(false);
  expect(ownedBy(child.pid)).toEqual([]);
  await ended(sleeper);
});

it("what a killed owner leaves behind is removed at the next start, other labs stay", async () => {
  const [killed, living] = [owner("await Bun.sleep(60_000);"), owner("await Bun.sleep(60_000);")];
  try {
    const [stale, kept] = [await sleeperPid(killed), await sleeperPid(living)];
    const [staleDirectory, keptDirectory] = [await directoryOf(killed), await directoryOf(living)];
    killed.signal("SIGKILL");
    await killed.exited;
    expect(ownedBy(killed.pid)).toHaveLength(4);
    await removeStaleLabs();
    expect(ownedBy(killed.pid)).toEqual([]);
    await ended(stale);
    expect([existsSync(staleDirectory), existsSync(keptDirectory)]).toEqual([false, true]);
    expect(ownedBy(living.pid)).toHaveLength(4);
    expect(isRunning(kept)).toBe(true);
  } finally {
    living.signal("SIGKILL");
    await living.exited;
    await removeStaleLabs();
  }
});

/** The kernel ends what is killed in its own time, and another lab that starts at this moment may be the one that killed it. */
const ended = (pid: number): Promise<void> =>
  vi.waitFor(() => expect(isRunning(pid)).toBe(false), { timeout: 2000, interval: 10 });

function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // A killed program whose parent has not looked yet is a zombie.
    return stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3) !== "Z";
  } catch {
    return false;
  }
}
