/**
 * How often an agent takes a NAT for what it is: many samples of every kind, a table of what each was called and how its ports were
 * judged, and how far the borders of a block were off. Only with LAB_FULL=1; labels.test.ts has one sample of each, with all it says.
 *
 * Each sample is an agent that nobody has seen before; what it has found is kept in .lab-results/labels.json (series.ts).
 */
import { afterAll, describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { startAgent, startCoordinator } from "./mesh.ts";
import { interval, IS_FULL, quantile, Series } from "./series.ts";
import type { SiteOptions } from "./topology.ts";

const SAMPLES = 20;
/** Right ones among all. */
const SURE = 0.95;
/** Each has a program that starts at the same moment as the others. */
const SITES_PER_LAB = 5;

interface Kind {
  readonly name: string;
  readonly site: SiteOptions;
  /** Label and allocation. */
  readonly right: string;
  /** True borders of the block. */
  readonly block?: { readonly first: number; readonly last: number };
}

const block = (size: 256 | 512 | 1024): Kind => ({
  name: `symblock${size}`,
  site: { nat: `symblock${size}` },
  right: "symmetric, block",
  block: { first: 40_000, last: 40_000 + size - 1 },
});
const KINDS: readonly Kind[] = [
  { name: "open", site: { nat: "open" }, right: "open, preserving" },
  { name: "firewalled", site: { nat: "firewalled" }, right: "port-restricted cone, preserving" },
  { name: "fullcone", site: { nat: "fullcone" }, right: "full cone, preserving" },
  { name: "restricted", site: { nat: "restricted" }, right: "restricted cone, preserving" },
  { name: "portrestricted", site: { nat: "portrestricted" }, right: "port-restricted cone, preserving" },
  { name: "symmetric", site: { nat: "symmetric" }, right: "symmetric, random" },
  { name: "symseq", site: { nat: "symseq" }, right: "symmetric, sequential" },
  block(256),
  block(512),
  block(1024),
  {
    name: "cgn-fullcone",
    site: { nat: "portrestricted", carrier: "fullcone" },
    right: "port-restricted cone, preserving",
  },
  { name: "cgn-symmetric", site: { nat: "portrestricted", carrier: "symmetric" }, right: "symmetric, random" },
  { ...block(512), name: "cgn-symblock512", site: { nat: "portrestricted", carrier: "symblock512" } },
  { name: "udpblocked", site: { nat: "udpblocked" }, right: "udp blocked, unknown" },
];

interface Sample {
  /** Label and allocation, as `Kind.right` has them. */
  readonly said: string;
  readonly isCertain: boolean;
  /** By how many ports the block that was said begins and ends beyond the true one; negative: within. */
  readonly borders?: readonly [number, number];
}

const series = new Series<Sample>("labels");
const groups = Array.from({ length: Math.ceil(KINDS.length / SITES_PER_LAB) }, (_, index) =>
  KINDS.slice(index * SITES_PER_LAB, (index + 1) * SITES_PER_LAB),
);

describe.runIf(IS_FULL)("samples (only in the full run)", () => {
  test.each(groups.map((kinds) => ({ names: kinds.map(({ name }) => name).join(", "), kinds })))(
    "$names",
    { timeout: 300_000 },
    async ({ kinds }) => takeSamples(kinds),
  );

  test("at least 95 % were taken for what they are, and no kind mostly for another", () => {
    const all = KINDS.flatMap((kind) => series.of(kind.name).map((sample) => isRight(kind, sample)));
    expect(all.length).toBeGreaterThanOrEqual(SAMPLES * KINDS.length);
    expect(shareOf(all)).toBeGreaterThanOrEqual(SURE);
    for (const kind of KINDS) {
      expect(shareOf(series.of(kind.name).map((sample) => isRight(kind, sample))), kind.name).toBeGreaterThan(0.8);
    }
  });
});

afterAll(() => {
  if (!IS_FULL) return;
  const lines = KINDS.map((kind) => {
    const samples = series.of(kind.name);
    const counts = new Map<string, number>();
    for (const { said } of samples) counts.set(said, (counts.get(said) ?? 0) + 1);
    const said = [...counts].toSorted(([, a], [, b]) => b - a).map(([what, count]) => `${count} ${what}`);
    const right = samples.filter((sample) => isRight(kind, sample)).length;
    return `${kind.name.padEnd(17)} ${`${right}/${samples.length}`.padEnd(7)} ${interval(right, samples.length).padEnd(15)} ${said.join("; ")}${bordersOf(samples)}`;
  });
  console.log(["NAT               right   95 % interval   taken for", ...lines].join("\n"));
});

async function takeSamples(kinds: readonly Kind[]): Promise<void> {
  const missing = Math.max(...kinds.map(({ name }) => SAMPLES - series.of(name).length));
  if (missing <= 0) return;
  await withLab({ sites: kinds.map(({ site }) => site) }, async (lab) => {
    const coordinator = await startCoordinator(lab);
    const { url } = coordinator;
    const key = await coordinator.createKey({ reusable: true });
    for (let i = 0; i < missing; i += 1) {
      await Promise.all(
        kinds.map(async (kind, index) => {
          if (series.of(kind.name).length >= SAMPLES) return;
          const { host } = lab.site(index + 1);
          // They look at their own NATs only.
          const agent = await startAgent(lab, host, { name: `${host.role}-${i}`, url, key, extra: ["--no-direct"] });
          await agent.events.next("nat_detected", { timeoutMs: 10_000 });
          const { nat } = (await agent.status()).self;
          await agent.kill();
          const { block: truth } = kind;
          const borders =
            truth === undefined || nat.ports === undefined || nat.ports === null
              ? {}
              : { borders: [truth.first - nat.ports.first, nat.ports.last - truth.last] as const };
          series.keep(kind.name, {
            said: `${nat.label}, ${nat.allocation ?? "unknown"}`,
            isCertain: nat.certain,
            ...borders,
          });
        }),
      );
    }
  });
}

const isRight = ({ right }: Kind, { said }: Sample): boolean => said === right;
const shareOf = (all: readonly boolean[]): number => all.filter(Boolean).length / all.length;

/** `; borders off by 12 ports in the middle, 60 at worst`. */
function bordersOf(samples: readonly Sample[]): string {
  const errors = samples.flatMap(({ borders }) => (borders ?? []).map(Math.abs)).toSorted((a, b) => a - b);
  if (errors.length === 0) return "";
  const missed = samples.flatMap(({ borders }) => (borders ?? []).map((beyond) => Math.max(0, -beyond)));
  return `; borders off by ${quantile(errors, 0.5)} ports (median), ${errors.at(-1) ?? 0} (worst), ${Math.max(...missed)} missed at worst`;
}
