import { defineConfig } from "vitest/config";
export default defineConfig({ test: { root: "/work/main", include: ["test/{queue,blobs}/**/*.test.ts"], globalSetup: ["/work/main/test/support/global-setup.ts", "/tmp/vq-setup.ts"], testTimeout: 30000, hookTimeout: 60000, maxWorkers: 2 } });
