/** The clock of Linux that goes on while the machine sleeps, so that keys and consent are old after a suspend. */
import { type Instant, instant } from "../../../shared/time.ts";
import { CLOCK_BOOTTIME, libc } from "./libc.ts";

/** `struct timespec`: two 64-bit numbers. The upper half of the seconds stays zero for 136 years of uptime. */
const timespec = new Uint32Array(4);

/** The same on every thread of the machine, unlike performance.now(), whose origin differs in a worker. */
export function bootTime(): Instant {
  libc().clock_gettime(CLOCK_BOOTTIME, timespec);
  return instant((timespec[0] ?? 0) * 1000 + (timespec[2] ?? 0) / 1e6);
}
