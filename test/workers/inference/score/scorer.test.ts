/** The scoring process, as it is run beside a worker: its scores, its priority, its ends and its deaths. */
import { fork } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { constants, getPriority, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";

import { createLog } from "#platform/log.ts";
import { processInfo } from "#platform/processes.ts";
import { createLpips } from "#workers/inference/score/lpips.ts";
import { type FilePair, scoreFiles } from "#workers/inference/score/score-files.ts";
import { startScorer } from "#workers/inference/score/scorer.ts";

import { eventually } from "../support/eventually.ts";
import { concat, texture, withNoise } from "./support/frames.ts";
import { golden, pairNamed, readPair } from "./support/golden-pairs.ts";

const LPIPS = "models/lpips/lpips-alex.json";
let folder: string;
/** A golden pair, and enough frames for a second or more of scoring. */
let small: FilePair;
let long: FilePair;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "scorer-test-"));
  const { reference, candidate, shape } = await pairNamed("pusht-neighbours");
  small = await filesOf("small", reference, candidate, shape);
  const video = concat(Array.from({ length: 120 }, () => reference));
  long = await filesOf("long", video, video, { ...shape, frames: 120 });
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Of the tests that do not stop theirs. */
const scorer = startScorer({ lpipsModel: LPIPS, log: createLog("scorer-test", "silent") });
afterAll(() => scorer.stop());

function start({ idleMs = 60_000, lpipsModel = LPIPS } = {}) {
  const scorer = startScorer({ lpipsModel, log: createLog("scorer-test", "silent"), idleMs });
  onTestFinished(() => scorer.stop());
  return scorer;
}

async function filesOf(name: string, reference: Uint8Array, candidate: Uint8Array, shape: FilePair["shape"]) {
  const [a, b] = [join(folder, `${name}-a.rgb`), join(folder, `${name}-b.rgb`)];
  await Promise.all([writeFile(a, reference), writeFile(b, candidate)]);
  return { reference: a, candidate: b, shape };
}

test("golden pairs get their scores, one process does them all, at the lowest priority", async () => {
  expect(scorer.pid).toBeUndefined();
  const pids = new Set<number | undefined>();
  await Promise.all(
    golden.pairs.map(async (pair) => {
      const { reference, candidate, shape } = await readPair(pair);
      const score = await scorer.score(await filesOf(pair.name, reference, candidate, shape));
      pids.add(scorer.pid);
      expect(Math.abs(score.psnr.mean - pair.psnr)).toBeLessThan(golden.tolerance.psnr_db);
      expect(Math.abs(score.ssim.mean - pair.ssim)).toBeLessThan(golden.tolerance.ssim);
      expect(Math.abs(score.lpips.mean - pair.lpips)).toBeLessThan(golden.tolerance.lpips);
    }),
  );
  expect(pids.size).toBe(1);
  expect(getPriority(scorer.pid)).toBe(constants.priority.PRIORITY_LOW);
});

test("how much is read at once makes no difference", async () => {
  const shape = { frames: 7, height: 64, width: 70 };
  const frames = Array.from({ length: shape.frames }, (_, i) => texture(shape.height, shape.width, i));
  const noisy = frames.map((frame, i) => withNoise(frame, 3 * i, 90 + i));
  const pair = await filesOf("parts", concat(frames), concat(noisy), shape);
  const lpips = createLpips({ model: LPIPS, providers: ["cpu"] });
  onTestFinished(() => lpips.release());
  const whole = await scoreFiles(pair, lpips);
  expect(whole.psnr.frames).toHaveLength(7);
  expect(whole.psnr.frames[0]).toBe(100);
  expect(new Set(whole.psnr.frames).size).toBe(7);
  for (const frames of [1, 3]) {
    const parts = await scoreFiles(pair, lpips, frames * 64 * 70 * 3);
    expect([parts.psnr, parts.ssim]).toEqual([whole.psnr, whole.ssim]);
    for (const [i, distance] of parts.lpips.frames.entries()) {
      expect(distance).toBeCloseTo(whole.lpips.frames[i] ?? Number.NaN, 6);
    }
  }
});

test("a process that is killed fails the request that it had, and no other", async () => {
  const first = scorer.score(long);
  const second = scorer.score(small);
  const outcome = first.catch((error: unknown) => error);
  const pid = await eventually(() => scorer.pid);
  process.kill(pid, "SIGKILL");
  expect(await outcome).toMatchObject({ name: "ScorerFailed", message: "the scoring process ended (signal SIGKILL)" });
  expect((await second).psnr.mean).toBeLessThan(100);
  expect(scorer.pid).not.toBe(pid);
});

test("files of another size, frames that are too small and a missing file or graph are refused, and harm nothing", async () => {
  const short = scorer.score({ ...small, shape: { ...small.shape, frames: 2 } });
  await expect(short).rejects.toThrow("the reference has 27648 bytes, expected 55296");
  const tiny = await filesOf("tiny", new Uint8Array(32 * 32 * 3), new Uint8Array(32 * 32 * 3), {
    frames: 1,
    height: 32,
    width: 32,
  });
  await expect(scorer.score(tiny)).rejects.toThrow("frames of 32 × 32, expected at least 64 pixels a side");
  await expect(scorer.score({ ...small, candidate: join(folder, "none") })).rejects.toThrow("ENOENT");
  const { pid } = scorer;
  expect((await scorer.score(small)).ssim.frames).toHaveLength(1);
  expect(scorer.pid).toBe(pid);
  await expect(start({ lpipsModel: join(folder, "none.json") }).score(small)).rejects.toThrow("none.json");
});

test("a request that is called off ends at once, and its process with it; one that waits does not disturb the others", async () => {
  const [running, waiting] = [new AbortController(), new AbortController()];
  const first = scorer.score(long, running.signal);
  const second = scorer.score(long, waiting.signal);
  const third = scorer.score(small);
  const pid = await eventually(() => scorer.pid);
  waiting.abort(new Error("cancelled while it waited"));
  await expect(second).rejects.toThrow("cancelled while it waited");
  expect(scorer.pid).toBe(pid);
  running.abort(new Error("cancelled while it was scored"));
  await expect(first).rejects.toThrow("cancelled while it was scored");
  expect((await third).psnr.frames).toHaveLength(1);
  expect(await processInfo(pid)).toBeNull();
});

test("without requests it ends, and comes back with the next", async () => {
  const scorer = start({ idleMs: 20 });
  const scored = await scorer.score(small);
  const { pid } = scorer;
  expect(pid).toBeDefined();
  await eventually(async () => scorer.pid === undefined && (await processInfo(pid ?? 0)) === null);
  expect(await scorer.score(small)).toEqual(scored);
});

test("once stopped there is no process and no score", async () => {
  const scorer = start();
  const pending = scorer.score(long).catch((error: unknown) => error);
  const pid = await eventually(() => scorer.pid);
  await scorer.stop();
  expect(await pending).toMatchObject({ name: "ScorerFailed", message: "the scorer was stopped" });
  expect(await processInfo(pid)).toBeNull();
  await expect(scorer.score(small)).rejects.toThrow("the scorer was stopped");
});

test("it ends with a parent that is killed while it scores", async () => {
  const parent = fork(fileURLToPath(new URL("support/scorer-parent.ts", import.meta.url)), [JSON.stringify(long)], {
    execArgv: [],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  onTestFinished(() => void parent.kill("SIGKILL"));
  const pid = await new Promise<number>((resolve) => parent.once("message", (pid) => resolve(Number(pid))));
  expect(await processInfo(pid)).not.toBeNull();
  parent.kill("SIGKILL");
  await eventually(async () => (await processInfo(pid)) === null);
});
