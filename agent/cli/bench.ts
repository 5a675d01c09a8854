/** `bench`: a progress line that a terminal draws over, then what has arrived. */
import type { BenchEvent } from "../local/contract.ts";
import type { LocalClient } from "../local/client.ts";
import { printable } from "../log.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import type { Host } from "./host.ts";
import type { BenchCommandOptions } from "./invocation.ts";
import { bytes } from "./render.ts";

const CLEAR_LINE = "\r\u001b[K";

export async function bench(
  client: LocalClient,
  options: BenchCommandOptions,
  host: Host,
  signal: AbortSignal,
): Promise<number> {
  const { peer, seconds, reverse, json } = options;
  const showsProgress = !json && host.columns() !== undefined;
  let last: BenchEvent | undefined;
  try {
    await client.bench(
      peer,
      { seconds, reverse },
      (event) => {
        last = event;
        if (showsProgress && !event.isFinal) host.out(`${CLEAR_LINE}${sentence(options, event)}`);
      },
      signal,
    );
  } finally {
    if (showsProgress) host.out(CLEAR_LINE);
  }
  if (last === undefined || last.bytes === 0) {
    throw new UserError(EXIT.timedOut, `Nothing arrived; "tunnelmesh-agent why ${peer}" says more`);
  }
  const { ms, paths } = last;
  const direction = reverse ? "from" : "to";
  const result = { schema: 1, peer, direction, bytes: last.bytes, ms, bitsPerSecond: Math.round(rate(last)), paths };
  host.out(json ? `${JSON.stringify(result)}\n` : `${sentence(options, last)}\n`);
  return EXIT.ok;
}

/** "to nas: 412 Mbit/s, 515 MB in 10.0 s, direct". */
function sentence({ peer, reverse }: BenchCommandOptions, event: BenchEvent): string {
  const paths = event.paths.map((kind) => (kind === "direct" ? "direct" : `relayed by ${kind}`)).join(", then ");
  const amount = `${bytes(event.bytes)} in ${(event.ms / 1000).toFixed(1)} s`;
  return `${reverse ? "from" : "to"} ${printable(peer)}: ${bitRate(rate(event))}, ${amount}, ${paths}`;
}

/** Bits a second, from the first byte that arrived to the last. */
const rate = ({ bytes: count, ms }: BenchEvent): number => (ms <= 0 ? 0 : (count * 8000) / ms);

/** 0.4 Mbit/s, 7.3 Mbit/s, 412 Mbit/s, 1.24 Gbit/s. */
function bitRate(bitsPerSecond: number): string {
  const mega = bitsPerSecond / 1_000_000;
  if (mega >= 1000) return `${(mega / 1000).toFixed(2)} Gbit/s`;
  return `${mega < 100 ? mega.toFixed(1) : mega.toFixed(0)} Mbit/s`;
}
