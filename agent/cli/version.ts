/** The program's version, from the manifest, compiled in. */
import manifest from "../../package.json" with { type: "json" };

export const VERSION: string = manifest.version;
