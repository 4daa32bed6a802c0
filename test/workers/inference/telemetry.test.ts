/** A worker tells nobody what it runs: ONNX Runtime would, and it would keep an id of this machine where HOME is. */
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { expect, test } from "vitest";

const BUNDLE = "models/pusht-small";
const WITHOUT_ENGINE = `
  const ort = await import("onnxruntime-node");
  await (await ort.InferenceSession.create("${BUNDLE}/timestep.onnx")).release();`;
const WITH_ENGINE = `
  const { startEngine } = await import("#workers/inference/engine/engine.ts");
  const { loadManifests } = await import("#platform/bundles.ts");
  const { createLog } = await import("#platform/log.ts");
  const [manifest] = await loadManifests("models");
  const settings = { bundleDir: "${BUNDLE}", manifest, providers: ["cpu"], rowsWorth: 1, runTimeoutMs: 60_000 };
  await (await startEngine({ ...settings, log: createLog("telemetry test", "silent") })).stop();`;

/** What is left in its home and its folder for files in the making. */
async function filesLeftBy(script: string): Promise<string[]> {
  const home = mkdtempSync(join(tmpdir(), "dream-telemetry-"));
  try {
    const env = { PATH: process.env["PATH"], HOME: home, TMPDIR: home }; // not CI, where ONNX Runtime is silent by itself
    await promisify(execFile)(process.execPath, ["--eval", script], { env });
    return readdirSync(home, { recursive: true, encoding: "utf8" });
  } finally {
    rmSync(home, { recursive: true });
  }
}

test("the engine leaves nothing behind where ONNX Runtime by itself keeps an id of the machine", async () => {
  const byItself = await filesLeftBy(WITHOUT_ENGINE);
  // Else this test would say nothing: then look whether the variable is needed any more.
  expect(byItself.filter((file) => file.endsWith("deviceid"))).toHaveLength(1);
  expect(await filesLeftBy(WITH_ENGINE)).toEqual([]);
});
