/** Writes the manual page of the agent, docs/tunnelmesh-agent.1, from its commands. Usage: npm run man */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createProgram } from "../agent/cli/commands.ts";
import { manPage } from "../agent/cli/man_page.ts";
import { VERSION } from "../agent/cli/version.ts";
import { root } from "./run.ts";

const path = join(root, "docs", "tunnelmesh-agent.1");
writeFileSync(
  path,
  manPage(
    createProgram(() => {}),
    VERSION,
  ),
);
console.log(`Wrote ${path}`);
