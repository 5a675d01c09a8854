/** A clock for every system. performance.now() starts at zero in each worker; its origin makes the threads agree. */
import { type Instant, instant } from "../../../shared/time.ts";

export const portableTime = (): Instant => instant(performance.timeOrigin + performance.now());
