/** The engine in its thread, with real graphs. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { silentLog } from "#test/support/postgres.ts";
import {
  createHangWatch,
  type Engine,
  EngineFault,
  EngineUnavailable,
  startEngine,
} from "#workers/inference/engine/engine.ts";
import type { EngineRequest } from "#workers/inference/engine/loop.ts";

import { frameErrors, golden, goldenRequest } from "./support/golden.ts";
import { CHUNK, POISON_ACTION, SIDE, writeTinyBundle } from "./support/tiny-bundle.ts";

const RUN_TIMEOUT_MS = 20_000;

/** Frames of each candidate, put together. */
async function dream(engine: Engine, request: EngineRequest): Promise<Uint8Array[]> {
  const parts = request.actions.map((): Uint8Array[] => []);
  const { done } = engine.submit(request, (candidate, frames) => void parts[candidate]?.push(frames));
  expect(await done).toMatchObject({ kind: "finished" });
  return parts.map((frames) => Buffer.concat(frames));
}

function request(id: string, action: number, chunks = 2): EngineRequest {
  return {
    id,
    frame: new Uint8Array(SIDE * SIDE * 3),
    actions: [new Float32Array(chunks * CHUNK).fill(action)],
    seed: 0n,
    numSteps: 2,
    guidance: 0,
    prompt: "",
    lane: "realtime",
    spec: "served",
    alone: false,
  };
}

async function stopped(engine: Engine): Promise<void> {
  if (!(await engine.stop())) throw new Error("the engine did not stop");
}

describe("with the shipped bundle", () => {
  let manifest: Manifest;
  let engine: Engine;

  beforeAll(async () => {
    const found = (await loadManifests("models")).find(({ slug }) => slug === golden.bundle);
    if (!found) throw new Error(`no bundle ${golden.bundle}`);
    manifest = found;
    const bundleDir = join("models", golden.bundle);
    engine = await startEngine({
      bundleDir,
      manifest,
      providers: ["cpu"],
      rowsWorth: manifest.engine.max_batch_samples,
      runTimeoutMs: RUN_TIMEOUT_MS,
      log: silentLog,
    });
  });
  afterAll(() => stopped(engine));

  function expectSame(video: Uint8Array | undefined, expected: Uint8Array | undefined): void {
    if (!video || !expected) throw new Error("a video is missing");
    const frameBytes = manifest.shapes.height * manifest.shapes.width * 3;
    expect(video).toHaveLength(expected.length);
    // Sums in another order move the last bits; half a level in the mean would be a fault.
    expect(Math.max(...frameErrors(video, expected, frameBytes))).toBeLessThan(0.05);
  }

  /** Starts a rollout, and another once its first frames are there: the frames of both. */
  async function afterFrames(request: EngineRequest, other: () => Promise<Uint8Array[]>) {
    const parts: Uint8Array[] = [];
    const begun = Promise.withResolvers<void>();
    const { done } = engine.submit(request, (_, frames) => {
      parts.push(frames);
      begun.resolve();
    });
    await begun.promise;
    const [video] = await other();
    await done;
    return [video, Buffer.concat(parts)] as const;
  }

  test("a sample gives the same video alone and in any batch", async () => {
    const [first, second] = golden.rollouts;
    if (!first || !second) throw new Error("two golden rollouts are needed");
    const one = { ...(await goldenRequest(first)), id: "one" };
    const [alone] = await dream(engine, one);

    // The same once more, beside another prompt, seed and guidance, and beside candidates with other actions.
    const other = await goldenRequest(second, 2);
    const reversed = one.actions.map((sequence) => sequence.toReversed());
    const [[batched], , [candidate]] = await Promise.all([
      dream(engine, { ...one, id: "batched" }),
      dream(engine, { ...other, id: "other" }),
      dream(engine, { ...one, id: "candidates", actions: [...one.actions, ...reversed] }),
    ]);

    for (const video of [batched, candidate]) expectSame(video, alone);
    expect(Object.keys(engine.stats.denoise_batches).map(Number)).toContain(5);
  });

  test("and also when it joins late, makes way for others, or runs without any optimisation", async () => {
    const [first] = golden.rollouts;
    if (!first) throw new Error("a golden rollout is needed");
    const full = await goldenRequest(first);
    const one = { ...full, actions: full.actions.map((sequence) => sequence.slice(0, 48)) };
    const [alone] = await dream(engine, one);
    const crowd = { ...one, id: "crowd", actions: Array.from({ length: engine.samplesMax }, () => one.actions).flat() };

    const [[late], [base], [parked]] = await Promise.all([
      afterFrames({ ...one, id: "first" }, () => dream(engine, { ...one, id: "late" })),
      dream(engine, { ...one, id: "base", spec: "base", lane: "bulk" }),
      afterFrames({ ...one, id: "parked", lane: "bulk" }, () => dream(engine, crowd)).then(([, video]) => [video]),
    ]);
    for (const video of [late, base, parked]) expectSame(video, alone);
    expect(engine.stats.samples_parked).toBeGreaterThan(0);
    expect(engine.stats.samples_resumed).toBe(engine.stats.samples_parked);
  });

  test("the same request gives the same video, bit by bit, when it runs alone", async () => {
    const [first] = golden.rollouts;
    if (!first) throw new Error("a golden rollout is needed");
    const request = await goldenRequest(first);
    const short = { ...request, actions: request.actions.map((sequence) => sequence.slice(0, 24)) };
    expect(await dream(engine, short)).toEqual(await dream(engine, short));
  });
});

describe("with a bundle that misbehaves on request", () => {
  let modelsDir: string;
  let bundle: Awaited<ReturnType<typeof writeTinyBundle>>;
  let engine: Engine;

  beforeAll(async () => {
    modelsDir = await mkdtemp(join(tmpdir(), "dream-engine-test-engine-"));
    bundle = await writeTinyBundle(modelsDir);
  });
  afterAll(() => rm(modelsDir, { recursive: true, force: true }));
  afterEach(() => stopped(engine));

  async function start(): Promise<Engine> {
    engine = await startEngine({ ...bundle, providers: ["cpu"], runTimeoutMs: RUN_TIMEOUT_MS, log: silentLog });
    return engine;
  }

  test("hands frames over, block by block, as the receiver's own", async () => {
    await start();
    const blocks: Uint8Array[] = [];
    await engine.submit(request("a", 1), (_, frames) => void blocks.push(frames)).done;
    expect(blocks.map(({ byteLength, byteOffset }) => [byteLength, byteOffset])).toEqual(
      Array.from({ length: 2 * CHUNK }, () => [SIDE * SIDE * 3, 0]),
    );
    expect(blocks.every(({ buffer, byteLength }) => buffer.byteLength === byteLength)).toBe(true);
  });

  test("cancels between two steps and goes on with the others", async () => {
    await start();
    const cancelled = engine.submit(request("long", 20_000, 100), () => cancelled.cancel());
    const other = engine.submit(request("other", 1), () => undefined);
    expect(await cancelled.done).toEqual({ kind: "cancelled" });
    expect(await other.done).toMatchObject({ kind: "finished" });
  });

  test("counts from its first run on, before anything was asked of it", async () => {
    await start();
    expect(engine.stats.runs.text_encoder).toBe(2); // the empty prompt and the null sequence
  });

  test("an id in hand is not taken twice, and neither is an ended one's cancelling", async () => {
    await start();
    const first = engine.submit(request("a", 1), () => undefined);
    expect(() => engine.submit(request("a", 1), () => undefined)).toThrow("a is in hand already");
    expect(await first.done).toMatchObject({ kind: "finished" });
    const second = engine.submit(request("a", 1), () => undefined);
    first.cancel();
    expect(await second.done).toMatchObject({ kind: "finished" });
  });

  test("a run that fails rejects everything in hand and whatever comes later", async () => {
    await start();
    const neighbour = engine.submit(request("neighbour", 1, 100), () => undefined);
    const poison = engine.submit(request("poison", POISON_ACTION), () => undefined);
    await expect(poison.done).rejects.toThrow(EngineFault);
    await expect(neighbour.done).rejects.toMatchObject({ code: "engine_failed" });
    expect(await engine.failed).toMatchObject({ code: "engine_failed" });
    await expect(engine.submit(request("late", 1), () => undefined).done).rejects.toThrow(EngineUnavailable);
  });

  test("stops between two runs although there is work", async () => {
    await start();
    const { promise: begun, resolve } = Promise.withResolvers<void>();
    const { done } = engine.submit(request("long", 100, 100), () => resolve());
    await begun;
    const [ended] = await Promise.all([engine.stop(), expect(done).rejects.toThrow("the engine was stopped")]);
    expect(ended).toBe(true);
  });
});

describe("the hang watch", () => {
  test.each<[string, readonly (readonly [hasWork: boolean, now: number, pulse: number])[], boolean]>([
    [
      "sees a run that does not end",
      [
        [true, 0, 5],
        [true, 60, 5],
        [true, 100, 5],
      ],
      true,
    ],
    [
      "is content while runs end",
      [
        [true, 0, 5],
        [true, 60, 6],
        [true, 120, 7],
        [true, 180, 8],
      ],
      false,
    ],
    [
      "lets an idle engine be",
      [
        [false, 0, 5],
        [false, 1000, 5],
      ],
      false,
    ],
    [
      "counts from when the work came",
      [
        [false, 0, 5],
        [false, 1000, 5],
        [true, 1050, 5],
        [true, 1090, 5],
      ],
      false,
    ],
    [
      "sees a hang that began after idling",
      [
        [false, 0, 5],
        [false, 1000, 5],
        [true, 1050, 5],
        [true, 1101, 5],
      ],
      true,
    ],
  ])("%s", (_, looks, expected) => {
    let pulse = 0;
    const watch = createHangWatch(100, () => pulse);
    let hanging = false;
    for (const [hasWork, now, value] of looks) {
      pulse = value;
      hanging = watch.isHanging(hasWork, now);
    }
    expect(hanging).toBe(expected);
  });
});
