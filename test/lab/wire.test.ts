/** The delay wire keeps the round trip it was asked for, carries enough, loses what it should, and rests when nothing moves. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { withLab } from "./lab_case.ts";
import type { Machine } from "./topology.ts";

const TRAFFIC = `${import.meta.dirname}/traffic.ts`;
const PORT = "9000";
const OPEN = [{ nat: "open" }, { nat: "portrestricted" }] as const;

it.each([
  [10, 40],
  [50, 25],
  [200, 9],
])("a round trip of %i ms is kept between every two public addresses", async (roundTripMs, count) => {
  await withLab({ sites: OPEN, roundTripMs }, async (lab) => {
    await serve(lab.coordinator);
    for (const site of lab.sites) {
      const trips = await roundTrips(site.host, lab.coordinator, count);
      expect(trips, "no datagram is lost").not.toContain(null);
      // A busy machine wakes programs late, so single trips may be longer than the wire makes them, but none is shorter, and a wire
      // that is too long would show in the quickest.
      const quickest = Math.min(...trips.map((trip) => trip ?? 0));
      expect(quickest, JSON.stringify(trips)).toBeGreaterThanOrEqual(roundTripMs - 0.5);
      expect(quickest, JSON.stringify(trips)).toBeLessThan(roundTripMs + 3);
      // Nor does the first packet between two machines wait for address resolution, which would take a round trip of its own.
      // Below 200 ms the start of the measuring program counts for too much to tell.
      if (roundTripMs >= 200) expect(trips[0]).toBeLessThan(roundTripMs * 1.9);
    }
  });
});

it("delay and loss change while the wire runs", async () => {
  await withLab({ sites: OPEN, roundTripMs: 100 }, async (lab) => {
    await serve(lab.coordinator);
    const { host } = lab.site(1);
    expect(median(await roundTrips(host, lab.coordinator, 3))).toBeGreaterThan(97);
    await lab.setWire({ roundTripMs: 0 });
    expect(median(await roundTrips(host, lab.coordinator, 20))).toBeLessThan(5);
    await lab.setWire({ lossPercent: 100 });
    expect(await roundTrips(host, lab.coordinator, 1)).toEqual([null]);
    await lab.setWire({ lossPercent: 0 });
    expect(await roundTrips(host, lab.coordinator, 5)).not.toContain(null);
  });
});

it("100 Mbit/s pass with a round trip of 20 ms", async () => {
  await withLab({ sites: OPEN, roundTripMs: 20 }, async (lab) => {
    await serve(lab.coordinator);
    const bytes = 50_000_000;
    const took = Number(
      await lab
        .site(2)
        .host.execChecked([process.execPath, TRAFFIC, "send", lab.coordinator.address, PORT, `${bytes}`]),
    );
    const mbits = (bytes * 8) / took / 1_000;
    console.log(`wire: ${mbits.toFixed(0)} Mbit/s of TCP at 20 ms`);
    expect(mbits).toBeGreaterThan(100);
  });
});

it("an idle wire uses no processor time", async () => {
  await withLab({ sites: OPEN, roundTripMs: 50 }, async (lab) => {
    const list = await lab.internet.execChecked(["ip", "netns", "pids", lab.internet.namespace]);
    // The command that lists them is in the namespace too, and may have the lowest number.
    const pid = list.trim().split("\n").map(Number).find(isWire);
    if (pid === undefined) throw new Error(`No wire among the processes ${list}`);
    const before = processorTicks(pid);
    await Bun.sleep(1_000);
    // Ten milliseconds a tick: neighbour discovery may cost one or two.
    expect(processorTicks(pid) - before).toBeLessThanOrEqual(5);
  });
});

async function serve(machine: Machine): Promise<void> {
  const server = machine.spawn([process.execPath, TRAFFIC, "serve", machine.address, PORT]);
  await server.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), 5_000);
}

async function roundTrips(from: Machine, to: Machine, count: number): Promise<(number | null)[]> {
  const output = await from.execChecked([process.execPath, TRAFFIC, "rtt", to.address, PORT, `${count}`]);
  return JSON.parse(output) as (number | null)[];
}

const median = (values: readonly (number | null)[]): number => {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
};

function isWire(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("wire.ts");
  } catch {
    // It has ended.
    return false;
  }
}

/** User and system time of a process, /proc/<pid>/stat fields 14 and 15, in ticks of 10 ms. */
function processorTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11]) + Number(fields[12]);
}
