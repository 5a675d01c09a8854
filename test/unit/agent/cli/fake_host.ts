/** A terminal that remembers what was written, and a clock that stands where the fixtures are. */
import { PassThrough, Readable } from "node:stream";
import { coloured, type Host, plain, sleep } from "../../../../agent/cli/host.ts";
import { NOW } from "../local/fake_control.ts";

export class FakeHost implements Host {
  readonly account = { uid: 1000, home: "/nonexistent", env: {} };
  readonly hostName = "Ada's Laptop.example";
  env: Record<string, string> = {};
  width: number | undefined;
  height: number | undefined;
  stdout = "";
  stderr = "";
  isColoured = false;
  /** What `nc` reads and writes. */
  input: Uint8Array[] = [];
  readonly output = new PassThrough();
  /** Called before each pause; tests end a `--watch` here. */
  onSleep: () => void = () => {};

  columns = (): number | undefined => this.width;
  rows = (): number | undefined => this.height;
  paint: Host["paint"] = (style, text) => (this.isColoured ? coloured : plain)(style, text);

  out(text: string): void {
    this.stdout += text;
  }

  err(text: string): void {
    this.stderr += text;
  }

  pipes(): ReturnType<Host["pipes"]> {
    return { input: Readable.from(this.input), output: this.output };
  }

  unixMs(): number {
    return NOW;
  }

  async sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
    this.onSleep();
    // Real pauses are for polling only.
    await sleep(Math.min(milliseconds, 5), signal);
  }
}
