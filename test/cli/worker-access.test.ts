/** What reaches the workers that `serve` starts. */
import { availableParallelism } from "node:os";

import { afterEach, expect, test, vi } from "vitest";

import { workerEnv } from "#cli/worker-access.ts";
import { readConfig } from "#platform/config.ts";

afterEach(() => vi.unstubAllEnvs());

test("a worker gets the engine's settings and those of its device, and no secret", () => {
  const settings = {
    ENGINE_OPTIMISATIONS: "none",
    ENGINE_RUN_TIMEOUT_MS: "90000",
    ORT_THREADS: "3",
    ORT_DEVICE: "1",
    CUDA_VISIBLE_DEVICES: "2,3",
    CUDA_DEVICE_ORDER: "PCI_BUS_ID",
  };
  const secrets = { OPERATOR_TOKEN: "a-token-of-the-operator", STRIPE_SECRET_KEY: "sk_test_1" };
  for (const [name, value] of Object.entries({ ...settings, ...secrets })) vi.stubEnv(name, value);
  const env = workerEnv(readConfig({ ...process.env, ORT_PROVIDERS: "cuda, cpu" }), "tiny", null);
  expect(env).toMatchObject({ ...settings, MODEL: "tiny", ORT_PROVIDERS: "cuda,cpu" });
  expect(Object.keys(env)).not.toContain("OPERATOR_TOKEN");
  expect(Object.keys(env)).not.toContain("STRIPE_SECRET_KEY");
});

test("the workers of a machine share its cores, and each has one at least", () => {
  vi.stubEnv("ORT_THREADS", undefined);
  const cores = availableParallelism();
  for (const [WORKERS, threads] of [
    ["1", cores],
    ["64", Math.max(1, Math.floor(cores / 64))],
  ] as const) {
    const env = workerEnv(readConfig({ ...process.env, WORKERS }), "tiny", null);
    expect(env["ORT_THREADS"]).toBe(String(threads));
  }
});
