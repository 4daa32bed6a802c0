/** bench/peers compares servers of one pipeline: the Python one has to dream what the reference does. */
import { execFile } from "node:child_process";
import { resolve } from "node:path";
import { promisify } from "node:util";

import { expect, test } from "vitest";

import { ensurePython } from "#test/support/python.ts";

const TIMEOUT_MS = 300_000;
/** Of 255: graphs run in other batches round the last bit in another way. */
const LEVELS_MAX = 2;

test(
  "the pipeline behind the peers gives the golden rollouts, in batches of mixed lengths, seeds and steps",
  { timeout: TIMEOUT_MS },
  async () => {
    const root = resolve(import.meta.dirname, "../..");
    const python = await ensurePython(resolve(import.meta.dirname, "peers-requirements.txt"));
    const { stdout } = await promisify(execFile)(python, ["-B", "test/bench/peers_pipeline.py"], { cwd: root });
    const cases = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    const names = ["default", "one-step", "six-steps", "slow-arm-guided"];
    expect(new Set(cases.map(({ name }) => name))).toEqual(new Set(names));
    for (const { frames, levels } of cases) {
      expect(frames).toEqual([13, 49, 25]);
      expect(levels).toBeLessThanOrEqual(LEVELS_MAX);
    }
  },
);
