/** Settings about workers that contradict each other are refused, with what was expected. */
import { expect, test } from "vitest";

import { limitsOf, requireWorkers } from "#cli/fleet.ts";
import { readConfig } from "#platform/config.ts";

import { run } from "./command.ts";

test("the limits of a pool are those of the settings, and a minimum above the maximum is refused", () => {
  expect(limitsOf(readConfig({}))).toEqual({ minimum: 0, maximum: 1, scaledown_s: 60 });
  const own = { WORKERS: "4", WORKERS_MIN: "4", SCALEDOWN_S: "0" };
  expect(limitsOf(readConfig(own))).toEqual({ minimum: 4, maximum: 4, scaledown_s: 0 });
  const wrong = readConfig({ WORKERS: "2", WORKERS_MIN: "3" });
  expect(() => limitsOf(wrong)).toThrow("WORKERS_MIN: expected at most WORKERS, which is 2, got 3");
});

test("a fleet that may have nobody is refused", () => {
  expect(() => requireWorkers("local", readConfig({ WORKERS: "0" }))).toThrow(
    "WORKERS: expected at least 1 with FLEET=local",
  );
  expect(() => requireWorkers("kubernetes", readConfig({}))).not.toThrow();
});

test("FLEET is one of three, and serve runs no cluster's workers", async () => {
  expect(() => readConfig({ FLEET: "nomad" })).toThrow("FLEET: expected local, kubernetes or none");
  const refused = await run(["serve"], { FLEET: "kubernetes", DATA_DIR: "/nonexistent" });
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain("expected local or none, got kubernetes");
});
