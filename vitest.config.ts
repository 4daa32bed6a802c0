import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    // .ci/run counts from the JSON report.
    reporters: ["default", ["json", { outputFile: "test-output/vitest.json" }]],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // Two cores: more test processes at once only make every bound in the tests tighter.
    maxWorkers: 2,
  },
});
