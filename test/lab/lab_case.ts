/** One test case of the lab: a fresh topology, taken down whatever happens, its programs' output printed when the case fails. */
import { IS_FULL } from "./series.ts";
import { createLab, type Lab, type LabOptions } from "./topology.ts";

/** Times that a limit is its target: the full run judges targets; otherwise two labs share two cores with whatever else runs there. */
export const SLACK = IS_FULL ? 1 : 3;

export async function withLab<T>(options: LabOptions, body: (lab: Lab) => Promise<T>): Promise<T> {
  const lab = await createLab(options);
  let failed = true;
  try {
    const result = await body(lab);
    failed = false;
    return result;
  } finally {
    if (failed) console.error(lab.logs());
    await lab.destroy();
  }
}
