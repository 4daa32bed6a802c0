import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    // .ci/run counts from the JSON report.
    reporters: ["default", ["json", { outputFile: "test-output/vitest.json" }]],
    // Ends what hangs; what has to be quick says so itself. A busy machine is many times slower than a quiet one.
    testTimeout: 90_000,
    hookTimeout: 120_000,
    // Two cores: more test processes at once only make every bound in the tests tighter.
    maxWorkers: 2,
  },
});
