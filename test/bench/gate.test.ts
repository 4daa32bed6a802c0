/** The gate's rules as a table, and its short form as it is run: on the reference bundle, and on a bundle that is broken. */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { tinyManifest } from "#test/workers/inference/support/tiny-bundle.ts";

import type { Comparison, RolloutScore } from "../../bench/gate/compare.ts";
import { failuresOf } from "../../bench/gate/judge.ts";
import { tableOf } from "../../bench/gate/report.ts";
import { settingsOf } from "../../bench/gate/settings.ts";

const REFERENCE = "models/pusht-small";
/** It takes a few seconds of two cores; the rest is for those that have other work. */
const RUN_TIMEOUT_MS = 120_000;
const setting = { numSteps: 2, guidance: 0, chunks: 1 };
const gate = { psnr_min: 40, ssim_min: 0.9, lpips_max: 0.1 };
const AT_THE_THRESHOLDS = { psnr: 40, ssim: 0.9, lpips: 0.1 };

function compared(...rollouts: Partial<RolloutScore>[]): Comparison {
  const scores = rollouts.map((score, i) => ({ seed: BigInt(i), ...AT_THE_THRESHOLDS, ...score }));
  return { setting, rollouts: scores, wallMs: { served: 1, base: 1 }, bodies: { served: 1, base: 1 }, skipped: 0 };
}

describe("a bundle passes", () => {
  test("where every rollout is at the thresholds or closer", () => {
    const closer = { psnr: 100, ssim: 1, lpips: 0 };
    expect(failuresOf({ slug: "m", gate }, compared({}, closer))).toEqual([]);
  });
});

describe("a bundle fails", () => {
  test.each([
    [
      "PSNR",
      { psnr: 39.99 },
      "m, 2 steps, guidance 0, 1 chunk: PSNR of rollout 1 is 39.99 dB, expected at least 40 dB",
    ],
    ["SSIM", { ssim: 0.8999 }, "m, 2 steps, guidance 0, 1 chunk: SSIM of rollout 1 is 0.89990, expected at least 0.9"],
    [
      "LPIPS",
      { lpips: 0.1001 },
      "m, 2 steps, guidance 0, 1 chunk: LPIPS of rollout 1 is 0.10010, expected at most 0.1",
    ],
  ])("by one metric of one rollout among good ones: %s", (_, score, sentence) => {
    expect(failuresOf({ slug: "m", gate }, compared({ psnr: 100 }, score, { lpips: 0 }))).toEqual([sentence]);
  });

  test.each(["psnr", "ssim", "lpips"] as const)("when %s is no number, wherever the rollout stands", (metric) => {
    for (const scores of [
      [{ [metric]: Number.NaN }, {}],
      [{}, { [metric]: Number.NaN }],
    ]) {
      expect(failuresOf({ slug: "m", gate }, compared(...scores))).toEqual([
        expect.stringContaining("is not a number"),
      ]);
    }
    // What JSON makes of a NaN between two processes.
    const lost = compared({ [metric]: null });
    expect(failuresOf({ slug: "m", gate }, lost)).toEqual([expect.stringContaining("is not a number")]);
    expect(tableOf({ manifest: { ...tinyManifest(), gate }, comparisons: [lost], failures: [] })[2]).toContain(
      "(not a number)",
    );
  });

  test("when nothing says how close is close enough, and when nothing was compared", () => {
    expect(failuresOf({ slug: "m" }, compared({}))).toEqual([expect.stringContaining('m has no "gate"')]);
    expect(failuresOf({ slug: "m", gate }, compared())).toEqual([expect.stringContaining("no rollout was compared")]);
  });
});

const settingsAt = (default_num_steps: number, default_guidance: number) =>
  settingsOf({ sampler: { kind: "euler", shift: 1, default_num_steps, default_guidance } }, 4);

test("a bundle is asked at its defaults, with guidance turned over, and with a long sampler", () => {
  expect(settingsAt(10, 0)).toEqual([
    { numSteps: 10, guidance: 0, chunks: 4 },
    { numSteps: 10, guidance: 1.5, chunks: 4 },
    { numSteps: 35, guidance: 0, chunks: 1 },
  ]);
  expect(settingsAt(50, 3)).toEqual([
    { numSteps: 50, guidance: 3, chunks: 4 },
    { numSteps: 50, guidance: 0, chunks: 4 },
  ]);
});

describe("npm run gate -- --short", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "dream-gate-test-"));
  });
  afterAll(() => rm(folder, { recursive: true }));

  /** The reference bundle's graphs with another manifest. */
  async function writeBundle(parent: string, change: (manifest: Manifest) => Manifest): Promise<string> {
    const dir = join(folder, parent, "pusht-small");
    await mkdir(dir, { recursive: true });
    for (const file of await readdir(REFERENCE)) {
      if (file.endsWith(".onnx")) await symlink(resolve(REFERENCE, file), join(dir, file));
    }
    const manifest = JSON.parse(await readFile(join(REFERENCE, "model.json"), "utf8")) as Manifest;
    await writeFile(join(dir, "model.json"), JSON.stringify(change(manifest)));
    return dir;
  }

  function runGate(env: Readonly<Record<string, string>>): Promise<{ readonly code: number; readonly stdout: string }> {
    const results = join(folder, "RESULTS.md");
    return new Promise((done) => {
      const child = execFile(
        process.execPath,
        ["bench/gate.ts", "--short"],
        { env: { ...process.env, GATE_ROLLOUTS: "1", GATE_RESULTS: results, ...env }, timeout: RUN_TIMEOUT_MS },
        (_, stdout) => done({ code: child.exitCode ?? -1, stdout }),
      );
    });
  }

  test(
    "passes the reference bundle",
    async () => {
      const { code, stdout } = await runGate({});
      expect(stdout).toMatch(/^\| 35 steps, guidance 0, 1 chunk +\| 1 +\|/m);
      expect(stdout).toMatch(/\npassed\n$/);
      expect(code).toBe(0);
    },
    2 * RUN_TIMEOUT_MS,
  );

  test(
    "fails a bundle whose TeaCache always skips, says which threshold, and writes it down; and one without thresholds",
    async () => {
      const skipsAll = await writeBundle("skips-all", (manifest) => {
        const optimisations = { ...manifest.engine.optimisations, teacache: { threshold: 1e9, coefficients: [0] } };
        return { ...manifest, engine: { ...manifest.engine, optimisations } };
      });
      const gateless = await writeBundle("gateless", (manifest) => {
        const { gate: _gate, ...others } = manifest;
        return others;
      });
      const { code, stdout } = await runGate({ BUNDLES: `${gateless},${skipsAll}` });
      expect(code).toBe(1);
      const failed = stdout.match(/^FAILED: .*$/gm) ?? [];
      expect(failed.shift()).toContain('pusht-small has no "gate" in its model.json');
      expect(failed).toContainEqual(
        expect.stringMatching(
          /^FAILED: pusht-small, 35 steps, guidance 0, 1 chunk: PSNR of rollout 20000008 is .* dB, expected at least/,
        ),
      );
      // Two steps are the first and the last, which are always computed.
      expect(failed.filter((line) => !line.includes("35 steps"))).toEqual([]);
      const results = await readFile(join(folder, "RESULTS.md"), "utf8");
      expect(results).toContain(failed[0]?.replace("FAILED: ", "- "));
      expect(results).not.toContain("**Passed.**");
    },
    2 * RUN_TIMEOUT_MS,
  );
});
