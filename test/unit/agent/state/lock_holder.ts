/** A process that holds the lock of a state directory until it is killed. */
import { lockStateDir } from "../../../../agent/state/state_dir.ts";

lockStateDir(process.argv[2] ?? "");
console.log("locked");
setInterval(() => {}, 60_000);
