import { defineConfig } from "vitest/config";

/**
 * One configuration, run inside the runtime that each part targets (scripts/test.ts): the agent and the simulator under Bun, the
 * coordinator under Deno, shared/ under both. Two files at once: most of the time goes into computing what the simulator does.
 */
const inDeno = "Deno" in globalThis;

export default defineConfig({
  test: {
    include: inDeno
      ? ["test/unit/shared/**/*.test.ts", "test/unit/coordinator/**/*.test.ts", "test/golden/**/*.test.ts"]
      : [
          "test/unit/shared/**/*.test.ts",
          "test/unit/agent/**/*.test.ts",
          "test/golden/**/*.test.ts",
          "test/sim/**/*.test.ts",
          "test/*.test.ts",
        ],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 20_000,
  },
});
