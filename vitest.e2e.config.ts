import { defineConfig } from "vitest/config";

/**
 * The real coordinator and the compiled agent on loopback, no root needed; `npm run e2e` builds the agent and starts them under Bun. Two
 * files at once at most: each case has several programs of its own.
 */
export default defineConfig({
  test: {
    include: ["test/e2e/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 20_000,
    hookTimeout: 20_000,
  },
});
