import { createHash } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { createLpips, LpipsModelError } from "#workers/inference/score/lpips.ts";
import { psnrOf } from "#workers/inference/score/psnr.ts";
import { VideoShapeError } from "#workers/inference/score/video-shape.ts";

import { concat, texture, withNoise } from "./support/frames.ts";
import { pairNamed } from "./support/golden-pairs.ts";

const MODEL = "models/lpips/lpips-alex.json";
/** The sums of a batch may be ordered otherwise; distances go up to about 1. */
const FLOAT32_SLACK = 1e-6;
const SIDE = 64;
const one = { frames: 1, height: SIDE, width: SIDE };

const lpips = createLpips({ model: MODEL, providers: ["cpu"] });
afterAll(() => lpips.release());

const distance = async (a: Uint8Array, b: Uint8Array) => (await lpips.distances(a, b, one))[0] ?? Number.NaN;

test("the graph in the repository is the one that was compared with the authors' implementation", async () => {
  const described = JSON.parse(await readFile(MODEL, "utf8")) as { sha256: string; bytes: number; file: string };
  const verified = JSON.parse(await readFile("models/lpips/verified-alex.json", "utf8")) as {
    graph_sha256: string;
    linear_weights_equal_the_authors: boolean;
    difference_max: Record<string, number>;
  };
  const graph = await readFile(join("models/lpips", described.file));
  expect(createHash("sha256").update(graph).digest("hex")).toBe(described.sha256);
  expect(graph.length).toBe(described.bytes);
  expect(verified.graph_sha256).toBe(described.sha256);
  expect(verified.linear_weights_equal_the_authors).toBe(true);
  expect(Math.max(...Object.values(verified.difference_max))).toBeLessThan(1e-5);
});

describe("a distance", () => {
  test.each([1, 2, 3])("is exactly 0 between a frame and itself (texture %i)", async (seed) => {
    const frame = texture(SIDE, SIDE, seed);
    expect(await distance(frame, frame.slice())).toBe(0);
  });

  test("is exactly 0 between black frames, where no feature may be divided by zero", async () => {
    expect(await distance(new Uint8Array(SIDE * SIDE * 3), new Uint8Array(SIDE * SIDE * 3))).toBe(0);
  });

  test.each([1, 2, 3])("is above 0 and the same the other way round (texture %i)", async (seed) => {
    const frame = texture(SIDE, SIDE, seed);
    const noisy = withNoise(frame, 20, seed + 10);
    const there = await distance(frame, noisy);
    expect(there).toBeGreaterThan(1e-3);
    expect(Math.abs((await distance(noisy, frame)) - there)).toBeLessThan(FLOAT32_SLACK);
  });

  test("grows with every further doubling of the noise", async () => {
    const frame = texture(SIDE, SIDE, 4);
    const distances: number[] = [];
    for (const sigma of [4, 8, 16, 32, 64]) distances.push(await distance(frame, withNoise(frame, sigma, 5)));
    expect(distances).toEqual(distances.toSorted((a, b) => a - b));
    expect(distances[0]).toBeGreaterThan(0);
  });

  test("is the same alone and at any place of a video that takes several runs", async () => {
    const references = Array.from({ length: 23 }, (_, i) => texture(SIDE, SIDE, i));
    const candidates = references.map((frame, i) => withNoise(frame, 3 * i, i + 100));
    const together = await lpips.distances(concat(references), concat(candidates), { ...one, frames: 23 });
    expect(together).toHaveLength(23);
    for (const [i, reference] of references.entries()) {
      const alone = await distance(reference, candidates[i] ?? new Uint8Array());
      expect(Math.abs(alone - (together[i] ?? Number.NaN)), `frame ${i}`).toBeLessThan(FLOAT32_SLACK);
    }
  });

  test("of many frames lets the thread's other work go on between its runs", async () => {
    const video = concat(Array.from({ length: 40 }, () => texture(SIDE, SIDE, 1)));
    await distance(video.subarray(0, SIDE * SIDE * 3), video.subarray(0, SIDE * SIDE * 3)); // the session is open
    let turns = 0;
    const other = setInterval(() => turns++, 0);
    await lpips.distances(video, video, { ...one, frames: 40 });
    clearInterval(other);
    expect(turns).toBeGreaterThanOrEqual(4); // five runs of at most 9 frames
  });

  test("tells a blurred frame from a crisp one a moment later, which PSNR does not", async () => {
    const [crisp, blur] = [await pairNamed("pusht-neighbours"), await pairNamed("pusht-blurred")];
    const [later = Number.NaN] = await lpips.distances(crisp.reference, crisp.candidate, crisp.shape);
    const [blurred = Number.NaN] = await lpips.distances(blur.reference, blur.candidate, blur.shape);
    expect(Math.abs(psnrOf(crisp.reference, crisp.candidate) - psnrOf(blur.reference, blur.candidate))).toBeLessThan(
      0.2,
    );
    expect(blurred).toBeGreaterThan(10 * later);
  });
});

describe("refuses", () => {
  const frame = texture(SIDE, SIDE, 1);

  test.each([
    [{ frames: 1, height: 63, width: 64 }, "frames of 63 × 64, expected at least 64 pixels a side"],
    [{ frames: 1, height: 64, width: 8 }, "frames of 64 × 8, expected at least 64 pixels a side"],
    [{ frames: 0, height: 64, width: 64 }, "expected whole numbers above 0, got 0 frames of 64 × 64"],
    [{ frames: 1, height: 64.5, width: 64 }, "expected whole numbers above 0, got 1 frames of 64.5 × 64"],
    [{ frames: 2, height: 64, width: 64 }, "the reference has 12288 bytes, expected 24576: 2 frames of 64 × 64 in RGB"],
  ])("the shape %j", async (shape, message) => {
    await expect(lpips.distances(frame, frame, shape)).rejects.toThrow(new VideoShapeError(message));
  });

  test("a candidate of another length than its reference", async () => {
    const message = "the candidate has 12285 bytes, expected 12288: 1 frames of 64 × 64 in RGB";
    await expect(lpips.distances(frame, frame.subarray(3), one)).rejects.toThrow(new VideoShapeError(message));
  });

  test("to go on when its caller does not want the answer any more", async () => {
    const reason = new Error("cancelled");
    const asked = lpips.distances(frame, frame, one, AbortSignal.abort(reason));
    await expect(asked).rejects.toBe(reason);
  });
});

describe("the model", () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "dream-lpips-"));
  });
  afterAll(() => rm(dir, { recursive: true }));

  const frame = texture(SIDE, SIDE, 1);
  const ask = (model: string) => createLpips({ model, providers: ["cpu"] }).distances(frame, frame, one);

  test("is not opened before it is needed, and a wrong path is said then", async () => {
    const missing = join(dir, "none.json");
    const absent = createLpips({ model: missing, providers: ["cpu"] });
    await absent.release(); // nothing to release
    const asked = absent.distances(frame, frame, one);
    await expect(asked).rejects.toThrow(LpipsModelError);
    await expect(asked).rejects.toThrow(`cannot read ${missing}, expected what models/lpips/build.py writes`);
    await absent.release();
  });

  test("has to be the file that its description names", async () => {
    const file = join(dir, "lpips-alex.json");
    await copyFile(MODEL, file);
    const graph = await readFile("models/lpips/lpips-alex.onnx");
    await expect(ask(file)).rejects.toThrow(`cannot read ${join(dir, "lpips-alex.onnx")}, which ${file} names`);

    graph[graph.length >> 1] = (graph[graph.length >> 1] ?? 0) ^ 1; // one bit of one weight
    await writeFile(join(dir, "lpips-alex.onnx"), graph);
    await expect(ask(file)).rejects.toThrow(
      /lpips-alex\.onnx has SHA-256 [0-9a-f]{64}, .*lpips-alex\.json says 6fb0927f/,
    );
  });

  test("needs a description with a file, its checksum and the smallest frame", async () => {
    const file = join(dir, "half.json");
    await writeFile(file, JSON.stringify({ file: "lpips-alex.onnx" }));
    await expect(ask(file)).rejects.toThrow(`${file} describes no LPIPS graph: expected file, sha256 and side_min`);
  });

  test("is tried again by the next who asks, once it is there", async () => {
    const file = join(dir, "late", "lpips-alex.json");
    const late = createLpips({ model: file, providers: ["cpu"] });
    await expect(late.distances(frame, frame, one)).rejects.toThrow(LpipsModelError);
    await mkdir(join(dir, "late"));
    await copyFile("models/lpips/lpips-alex.onnx", join(dir, "late", "lpips-alex.onnx"));
    await copyFile(MODEL, file);
    expect([...(await late.distances(frame, frame, one))]).toEqual([0]);
    await late.release();
  });

  test("is released after what is being asked, and opened again for what comes then", async () => {
    const released = createLpips({ model: MODEL, providers: ["cpu"] });
    const video = concat(Array.from({ length: 20 }, () => frame));
    const asked = released.distances(video, video, { ...one, frames: 20 });
    const releasing = released.release();
    expect([...(await asked)]).toEqual(Array.from({ length: 20 }, () => 0));
    await releasing;
    expect([...(await released.distances(frame, frame, one))]).toEqual([0]);
    await released.release();
  });
});
