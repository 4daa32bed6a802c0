/** Pixels from the decoder's output to ffmpeg's socket: in one buffer a forward, handed on and never copied. */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MessageChannel } from "node:worker_threads";

import { expect, test, vi } from "vitest";

import { silentLog } from "#test/support/postgres.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { bytesOf } from "#workers/inference/engine/tensor.ts";
import type { EngineEvent, EngineRequest } from "#workers/inference/engine/loop.ts";
import { createOutbox, type EngineNews } from "#workers/inference/engine/outbox.ts";

import { createHarness } from "./support/loop-harness.ts";
import { CHUNK, SIDE, writeTinyBundle } from "./support/tiny-bundle.ts";

const FRAME_BYTES = SIDE * SIDE * 3;
const CANDIDATES = 3;

const request: EngineRequest = {
  id: "a",
  frame: new Uint8Array(FRAME_BYTES),
  actions: Array.from({ length: CANDIDATES }, () => new Float32Array(2 * CHUNK).fill(1)),
  seed: 1n,
  numSteps: 2,
  guidance: 0,
  prompt: "",
  lane: "realtime",
  spec: "served",
  alone: false,
};

const framesIn = (events: readonly EngineEvent[]): Uint8Array[] =>
  events.flatMap((event) => (event.type === "frames" ? [event.frames] : []));

test("the loop gives away views of what the decoder made, and no copy of it", async () => {
  const harness = await createHarness();
  const run = harness.graphs.run.bind(harness.graphs);
  const decoded = new Set<ArrayBufferLike>();
  harness.graphs.run = async (graph, inputs) => {
    const outputs = await run(graph, inputs);
    if (graph === "decoder" && outputs["frames"]) decoded.add(bytesOf(outputs["frames"]).buffer);
    return outputs;
  };
  harness.loop.submit(request);
  await harness.finish("a");
  const given = framesIn(harness.events);
  expect(given).toHaveLength(CANDIDATES * 2 * CHUNK);
  expect(given.filter(({ buffer }) => !decoded.has(buffer))).toEqual([]);
  expect(decoded.size).toBe(2 * CHUNK); // one a forward
});

/** Methods of every typed array that copy bytes. */
const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array;

test("of a chunk's pixels the loop copies one frame, which the next chunk begins with", async () => {
  const harness = await createHarness();
  const sizes = { kept: [] as number[], stacked: [] as number[] };
  const slice = vi.spyOn(typedArray, "slice");
  const set = vi.spyOn(typedArray, "set");
  try {
    harness.loop.submit(request);
    await harness.finish("a");
    for (const { value } of slice.mock.results) {
      if (value instanceof Uint8Array && value.byteLength >= FRAME_BYTES) sizes.kept.push(value.byteLength);
    }
    for (const [source] of set.mock.calls) {
      if (source instanceof Uint8Array && source.byteLength === FRAME_BYTES) sizes.stacked.push(source.byteLength);
    }
  } finally {
    slice.mockRestore();
    set.mockRestore();
  }
  // Two chunks: from the first one's end to the second one's beginning. The start frame is one, shared by all candidates.
  expect(sizes.kept).toEqual(Array<number>(CANDIDATES).fill(FRAME_BYTES));
  expect(sizes.stacked).toHaveLength(CANDIDATES);
});

const piecesIn = (news: readonly EngineNews[]): number[][][] =>
  news.flatMap((one) => (one.type === "frames" ? [one.pieces.map((piece) => [...piece])] : []));

test("the views of a buffer travel in one message, in order, and the buffer leaves the sender", async () => {
  const { port1, port2 } = new MessageChannel();
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a port has no origin
  const { emit, flush } = createOutbox((news, transfer) => port1.postMessage(news, transfer));
  const next = async () => ((await once(port2, "message")) as [EngineNews[]])[0];
  const forward = (first: number) => {
    const batch = Uint8Array.of(first, first + 1, first + 2, first + 3);
    for (const [candidate, at] of [0, 2].entries()) {
      emit({ type: "frames", id: "a", candidate, frames: batch.subarray(at, at + 2) });
    }
    return batch;
  };
  // Small frames wait for the next ones, until the loop rests.
  const batches = [forward(1), forward(5)];
  await new Promise((resolve) => setImmediate(resolve));
  expect(batches.map(({ byteLength }) => byteLength)).toEqual([4, 4]);
  const first = next();
  flush();
  expect(batches.map(({ buffer }) => buffer.detached)).toEqual([true, true]);
  expect(piecesIn(await first)).toEqual([
    [
      [1, 2],
      [5, 6],
    ],
    [
      [3, 4],
      [7, 8],
    ],
  ]);

  // An end takes along what is held, and large frames do not wait.
  const second = next();
  forward(9);
  emit({ type: "finished", id: "a", engineWallMs: 1 });
  expect((await second).map(({ type }) => type)).toEqual(["frames", "frames", "finished"]);
  const third = next();
  const large = new Uint8Array(2 * 640 * 480 * 3);
  for (const [candidate, half] of [large.subarray(0, large.length / 2), large.subarray(large.length / 2)].entries()) {
    emit({ type: "frames", id: "a", candidate, frames: half });
    expect(large.buffer.detached).toBe(false); // not before all views of it have been given
  }
  expect(await third).toHaveLength(2);
  port1.close();
});

test("across the engine's thread the frames of a forward arrive in one buffer, as large as they are together", async () => {
  const dir = await mkdtemp(join(tmpdir(), "dream-engine-test-copies-"));
  let engine: Engine | undefined;
  try {
    const bundle = await writeTinyBundle(dir);
    engine = await startEngine({ ...bundle, providers: ["cpu"], runTimeoutMs: 20_000, log: silentLog });
    const buffers = new Map<ArrayBufferLike, number>();
    const { done } = engine.submit(request, (_candidate, { buffer, byteLength }) => {
      buffers.set(buffer, (buffers.get(buffer) ?? 0) + byteLength);
    });
    expect(await done).toMatchObject({ kind: "finished" });
    const forwards = 2 * CHUNK;
    expect([...buffers.values()]).toEqual(Array<number>(forwards).fill(CANDIDATES * FRAME_BYTES));
    for (const [buffer, bytes] of buffers) expect(buffer.byteLength).toBe(bytes);
  } finally {
    await engine?.stop();
    await rm(dir, { recursive: true, force: true });
  }
});
