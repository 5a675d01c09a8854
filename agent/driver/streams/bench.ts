/**
 * `bench`: how much a stream carries to a peer, or from it, over whatever path the peer has at that moment.
 *
 * The one that receives does the counting, so that what is told has arrived. A peer may ask for one measurement at a time, of a minute at
 * most, and is sent nothing but zeroes.
 */
import { concatBytes } from "../../../shared/bytes.ts";
import type { CloseCode } from "../../overlay/contract.ts";
import {
  BENCH_PORT,
  BENCH_REQUEST_BYTES,
  BENCH_TOTAL_BYTES,
  type BenchTotal,
  decodeBenchRequest,
  decodeBenchTotal,
  encodeBenchRequest,
  encodeBenchTotal,
} from "../../overlay/bench_message.ts";
import type { BenchOptions } from "../../local/contract.ts";
import { EXIT, UserError } from "../../state/user_error.ts";
import { reachablePeer } from "../find_peer.ts";
import { closeError } from "./close_words.ts";
import type { PeerStreams } from "./peer_streams.ts";
import type { StreamDriver, StreamEvents, StreamHandle } from "./stream_driver.ts";

const FILLER = new Uint8Array(64 * 1024);
/** How often the receiver tells how far it is. */
const TOTAL_EVERY_MS = 200;
/** A peer that asked for less than this still gets its last bytes through a slow path. */
const GRACE_MS = 30_000;

/** Takes measurements of peers, before anybody else is asked who takes a stream. */
export function serveBench(driver: StreamDriver): void {
  const others = driver.onOpened;
  let isBusy = false;
  driver.onOpened = (peer, port, stream) => {
    if (port !== BENCH_PORT) return others(peer, port, stream);
    if (isBusy) {
      stream.reset("overloaded");
      return undefined;
    }
    isBusy = true;
    stream.accept();
    return new ServedBench(driver, stream, () => {
      isBusy = false;
    });
  };
}

/** Writes zeroes until its time is up, then ends the stream. */
class Filler {
  readonly #driver: StreamDriver;
  readonly #stream: StreamHandle;
  readonly #endAt: number;
  #isEnded = false;

  constructor(driver: StreamDriver, stream: StreamHandle, seconds: number) {
    this.#driver = driver;
    this.#stream = stream;
    this.#endAt = driver.now() + seconds * 1000;
  }

  fill(): void {
    while (!this.#isEnded) {
      if (this.#driver.now() >= this.#endAt) {
        this.#isEnded = true;
        this.#stream.end();
        // Room may come within the very call that says there is none: `writable` has been told already then.
      } else if (!this.#stream.write(FILLER)) return;
    }
  }
}

/** Counts what comes. */
class Meter {
  readonly #driver: StreamDriver;
  #bytes = 0;
  #firstAt: number | undefined;
  #lastAt = 0;

  constructor(driver: StreamDriver) {
    this.#driver = driver;
  }

  add(bytes: number): void {
    this.#lastAt = this.#driver.now();
    this.#firstAt ??= this.#lastAt;
    this.#bytes += bytes;
  }

  get total(): BenchTotal {
    return { bytes: this.#bytes, ms: Math.round(this.#lastAt - (this.#firstAt ?? this.#lastAt)) };
  }
}

/** The side that was asked. */
class ServedBench implements StreamEvents {
  readonly #driver: StreamDriver;
  readonly #stream: StreamHandle;
  readonly #over: () => void;
  readonly #meter: Meter;
  readonly #limit: ReturnType<typeof setTimeout>;
  #head: Uint8Array = new Uint8Array(0);
  #filler: Filler | undefined;
  #isRequested = false;
  #toldAt = 0;
  #fresh = 0;

  constructor(driver: StreamDriver, stream: StreamHandle, over: () => void) {
    this.#driver = driver;
    this.#stream = stream;
    this.#over = over;
    this.#meter = new Meter(driver);
    this.#limit = this.#giveUpAfter(GRACE_MS);
  }

  accepted(): void {}

  data(bytes: Uint8Array): void {
    this.#fresh += bytes.length;
    if (this.#isRequested) {
      this.#meter.add(bytes.length);
      return;
    }
    this.#head = concatBytes(this.#head, bytes);
    if (this.#head.length < BENCH_REQUEST_BYTES) return;
    const request = decodeBenchRequest(this.#head);
    this.#isRequested = true;
    if (request === undefined) {
      this.#stream.reset("refused");
      this.#end();
      return;
    }
    const rest = this.#head.length - BENCH_REQUEST_BYTES;
    if (request.sender === "peer") this.#filler = new Filler(this.#driver, this.#stream, request.seconds);
    else if (rest > 0) this.#meter.add(rest);
    this.#limit.refresh();
  }

  flush(): void {
    this.#stream.consumed(this.#fresh);
    this.#fresh = 0;
    this.#filler?.fill();
    if (this.#filler !== undefined || this.#driver.now() - this.#toldAt < TOTAL_EVERY_MS) return;
    this.#limit.refresh();
    this.#tell();
  }

  ended(): void {
    // Of a peer that wanted to be sent something, it only means that it has asked.
    if (this.#filler !== undefined) return;
    this.#tell();
    this.#stream.end();
  }

  writable(): void {
    this.#limit.refresh();
    this.#filler?.fill();
  }

  finished(): void {
    this.#end();
  }

  closed(): void {
    this.#end();
  }

  #tell(): void {
    this.#toldAt = this.#driver.now();
    this.#stream.write(encodeBenchTotal(this.#meter.total));
  }

  #end(): void {
    clearTimeout(this.#limit);
    this.#over();
  }

  #giveUpAfter(milliseconds: number): ReturnType<typeof setTimeout> {
    return setTimeout(() => {
      this.#stream.reset("cancelled");
      this.#over();
    }, milliseconds);
  }
}

/** The side that asks. Tells of progress now and then; returns what has arrived. Throws UserError. */
export async function runBench(
  streams: PeerStreams,
  reference: string,
  options: BenchOptions,
  onProgress: (total: BenchTotal) => void,
  signal: AbortSignal,
): Promise<BenchTotal> {
  const peer = reachablePeer(streams.peers(), reference);
  const { driver } = streams;
  const done = Promise.withResolvers<BenchTotal>();
  let bench: AskedBench | undefined;
  const handle = driver.open(peer.id, BENCH_PORT, (stream) => {
    bench = new AskedBench(driver, stream, options, onProgress, done.resolve, (code) =>
      done.reject(refusal(code, peer.entry.name)),
    );
    return bench;
  });
  if (handle === undefined) throw closeError("overloaded", peer.entry.name, BENCH_PORT);
  const onAbort = (): void => {
    handle.reset("cancelled");
    done.resolve(bench?.total ?? { bytes: 0, ms: 0 });
  };
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await done.promise;
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

function refusal(code: CloseCode, name: string): UserError {
  if (code === "not_exposed") {
    return new UserError(EXIT.failed, `The agent of "${name}" does not know how to measure: it is older than this one`);
  }
  if (code === "overloaded") {
    return new UserError(EXIT.failed, `"${name}" takes part in another measurement; try again when that has ended`);
  }
  return closeError(code, name, BENCH_PORT);
}

class AskedBench implements StreamEvents {
  readonly #driver: StreamDriver;
  readonly #stream: StreamHandle;
  readonly #options: BenchOptions;
  readonly #meter: Meter;
  readonly #onProgress: (total: BenchTotal) => void;
  readonly #done: (total: BenchTotal) => void;
  readonly #failed: (code: CloseCode) => void;
  #filler: Filler | undefined;
  #fresh = 0;
  #toldAt = 0;
  /** What the peer has told, and the beginning of what it tells next. */
  #told: BenchTotal | undefined;
  #partial: Uint8Array = new Uint8Array(0);

  constructor(
    driver: StreamDriver,
    stream: StreamHandle,
    options: BenchOptions,
    onProgress: (total: BenchTotal) => void,
    done: (total: BenchTotal) => void,
    failed: (code: CloseCode) => void,
  ) {
    this.#driver = driver;
    this.#stream = stream;
    this.#options = options;
    this.#meter = new Meter(driver);
    this.#onProgress = onProgress;
    this.#done = done;
    this.#failed = failed;
  }

  get total(): BenchTotal {
    return this.#options.reverse ? this.#meter.total : (this.#told ?? { bytes: 0, ms: 0 });
  }

  accepted(): void {
    const { reverse, seconds } = this.#options;
    this.#stream.write(encodeBenchRequest({ sender: reverse ? "peer" : "opener", seconds }));
    if (reverse) this.#stream.end();
    else {
      this.#filler = new Filler(this.#driver, this.#stream, seconds);
      this.#filler.fill();
    }
  }

  data(bytes: Uint8Array): void {
    this.#fresh += bytes.length;
    if (this.#options.reverse) {
      this.#meter.add(bytes.length);
      return;
    }
    let rest = concatBytes(this.#partial, bytes);
    for (; rest.length >= BENCH_TOTAL_BYTES; rest = rest.subarray(BENCH_TOTAL_BYTES)) {
      this.#told = decodeBenchTotal(rest) ?? this.#told;
    }
    this.#partial = rest.slice();
  }

  flush(): void {
    this.#stream.consumed(this.#fresh);
    this.#fresh = 0;
    if (this.#driver.now() - this.#toldAt < TOTAL_EVERY_MS) return;
    this.#toldAt = this.#driver.now();
    this.#onProgress(this.total);
  }

  ended(): void {
    this.#done(this.total);
  }

  writable(): void {
    this.#filler?.fill();
  }

  finished(): void {
    this.#done(this.total);
  }

  closed(code: CloseCode): void {
    this.#failed(code);
  }
}
