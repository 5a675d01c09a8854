import { defineConfig } from "vitest/config";

/**
 * Tests that need root and network namespaces; `npm run lab` checks for both and starts them under Bun. Two files at once at most: a
 * case has several programs of its own, and what it measures is time.
 */
export default defineConfig({
  test: {
    include: ["test/lab/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    maxConcurrency: 1,
    testTimeout: 20_000,
    hookTimeout: 20_000,
  },
});
