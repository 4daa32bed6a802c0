/** Realtime before bulk in one engine: who makes way, who is held up, and that nothing is computed twice for it. */
import { describe, expect, test } from "vitest";

import { BULK_EVERY } from "#workers/inference/engine/plan.ts";

import { createHarness, framesOf, type Harness, latentsOf, marked, request } from "./support/loop-harness.ts";
import { type RecordedRun, runsOf } from "./support/scripted-graphs.ts";
import { CHUNK, tinyManifest } from "./support/tiny-bundle.ts";

/** The tiny engine holds 4 samples of a lane. */
const ROWS_MAX = tinyManifest().engine.max_batch_samples;
const REALTIME = 100;

const bulk = (id: string, mark: number, chunks = 6) =>
  request(id, { lane: "bulk", actions: marked(mark, chunks), seed: BigInt(mark) });
const realtime = (id: string, mark: number, chunks = 1) => request(id, { actions: marked(mark, chunks), seed: 77n });

/** Forwards of the body as the marks of their rows. */
const bodies = (harness: Harness): readonly (readonly number[])[] =>
  runsOf(harness.graphs, "denoiser_body").map(({ action }) => action);

const rowsOfMark = (harness: Harness, mark: number): number =>
  bodies(harness)
    .flat()
    .filter((action) => action === mark).length;

/** Four bulk samples; "R" comes while the engine runs the forward in which `when` first holds. */
async function preempted(when: (run: RecordedRun) => boolean): Promise<Harness> {
  const harness = await createHarness();
  let hasCome = false;
  harness.graphs.beforeRun = (graph) => {
    const last = harness.graphs.runs.at(-1);
    if (hasCome || graph !== "denoiser_head" || !last || !when(last)) return;
    hasCome = true;
    harness.loop.submit(realtime("R", REALTIME));
  };
  for (const mark of [1, 2, 3, 4]) harness.loop.submit(bulk(`b${mark}`, mark));
  await harness.finish("b1", "b2", "b3", "b4", "R");
  return harness;
}

test("a realtime sample has its place at the next forward, and a bulk one is parked", async () => {
  const harness = await preempted(({ graph, position }) => graph === "denoiser_tail" || position[0] === 1);
  const first = bodies(harness).findIndex((marks) => marks.includes(REALTIME));
  expect(bodies(harness)[first - 1]).toEqual([1, 2, 3, 4]);
  const during = bodies(harness).filter((marks) => marks.includes(REALTIME));
  expect(during).toHaveLength(2 * CHUNK);
  expect(during.every(([leader]) => leader === REALTIME)).toBe(true);
  // The others stood before their decoding when it came; from the next block on three of them take the rows it leaves.
  expect(during.map(({ length }) => length)).toEqual([1, 1, ROWS_MAX, ROWS_MAX]);
  const since = bodies(harness).slice(first);
  expect(since.findLastIndex((marks) => marks.includes(REALTIME))).toBe(2 * CHUNK - 1);
  expect(harness.counters.samples_parked).toBeGreaterThan(0);
  expect(harness.counters.samples_resumed).toBe(harness.counters.samples_parked);
});

test("the parked one goes on where it stood: nothing is computed twice, and its video is the same", async () => {
  const undisturbed = await createHarness();
  for (const mark of [1, 2, 3, 4]) undisturbed.loop.submit(bulk(`b${mark}`, mark));
  await undisturbed.finish("b1", "b2", "b3", "b4");
  const harness = await preempted(({ graph }) => graph === "decoder");

  for (const mark of [1, 2, 3, 4]) {
    expect(rowsOfMark(harness, mark)).toBe(6 * 2 * CHUNK);
    expect(latentsOf(harness, mark)).toEqual(latentsOf(undisturbed, mark));
    expect(framesOf(harness, `b${mark}`)).toEqual(framesOf(undisturbed, `b${mark}`));
  }
});

test("each lane has as many live samples as fit a forward, so a full bulk lane does not keep realtime out", async () => {
  const harness = await createHarness();
  harness.loop.submit(bulk("b", 1, 2));
  harness.loop.submit({ ...bulk("many", 0, 4), actions: Array.from({ length: 9 }, () => marked(2, 4)).flat() });
  let admittedWithoutRealtime = 0;
  harness.graphs.beforeRun = (graph) => {
    if (graph !== "denoiser_body" || admittedWithoutRealtime > 0) return;
    admittedWithoutRealtime = harness.counters.samples_admitted;
    harness.loop.submit({ ...realtime("R", REALTIME), actions: Array.from({ length: 5 }, () => marked(3, 1)).flat() });
  };
  await harness.finish("b", "many", "R");
  expect(admittedWithoutRealtime).toBe(ROWS_MAX);
  const first = bodies(harness).findIndex((marks) => marks.includes(3));
  expect(first).toBeLessThanOrEqual(2);
  expect(bodies(harness)[first]).toEqual([3, 3, 3, 3]);
});

test("bulk is not starved: under a full realtime lane every ninth forward is the oldest bulk sample's", async () => {
  const harness = await createHarness();
  harness.loop.submit(bulk("b", 1, 2));
  harness.loop.submit({ ...realtime("R", REALTIME), actions: Array.from({ length: 4 }, () => marked(3, 30)).flat() });
  await harness.finish("b", "R");
  const stages = ["frame_encoder", "denoiser_body", "decoder"];
  const forwards = harness.graphs.runs.filter(({ graph }) => stages.includes(graph));
  let without = 0;
  let bulkForwards = 0;
  for (const { graph, action } of forwards) {
    if (bulkForwards === 2 * 2 * CHUNK) break;
    const isBulks = graph !== "frame_encoder" && action.includes(1);
    without = isBulks ? 0 : without + 1;
    if (isBulks && graph === "denoiser_body") bulkForwards += 1;
    expect(without).toBeLessThanOrEqual(2 * BULK_EVERY + 1); // an encode of its own is not told from the others' here
  }
  expect(bulkForwards).toBe(2 * 2 * CHUNK);
  expect(framesOf(harness, "b")).toHaveLength(2 * CHUNK);
});

test("a crowd of new prompts in the bulk lane costs realtime one look-up between two of its forwards", async () => {
  const harness = await createHarness();
  let submitted = 0;
  const prompts: number[] = [];
  harness.graphs.beforeRun = (graph, inputs) => {
    if (graph === "text_encoder") prompts.push(Number(inputs["text_ids"]?.data.at(1)) - 3);
    if (graph !== "denoiser_body" || submitted > 0) return;
    submitted = harness.graphs.runs.length;
    for (const mark of [1, 2, 3]) harness.loop.submit({ ...bulk(`b${mark}`, mark, 1), prompt: String(mark) });
    harness.loop.submit({ ...realtime("S", 200), prompt: "s" });
  };
  harness.loop.submit(realtime("R", REALTIME, 4));
  await harness.finish("R", "S", "b1", "b2", "b3");

  const since = harness.graphs.runs.slice(submitted);
  const looked = since.flatMap(({ graph }, at) => (graph === "text_encoder" ? [at] : []));
  // Realtime's own, though it came last, and bulk's first after it; from then on a forward lies between two.
  expect(String.fromCharCode(...prompts)).toBe("s123");
  const between = looked.slice(1).map((at, i) => at - (looked[i] ?? 0) > 1);
  expect(between).toEqual([false, true, true]);
});

test("a crowd of new prompts is looked up at once where no realtime sample waits for it", async () => {
  const harness = await createHarness();
  for (const mark of [1, 2, 3]) harness.loop.submit({ ...bulk(`b${mark}`, mark, 1), prompt: `p${mark}` });
  harness.graphs.runs.length = 0;
  await harness.finish("b1", "b2", "b3");
  expect(runsOf(harness.graphs, "frame_encoder").map(({ rows }) => rows)).toEqual([3]);
});

/** R fills every row; the bulk sample is parked until something ends it. */
async function parkedThen(act: (harness: Harness) => void) {
  const harness = await createHarness();
  let acted = false;
  harness.graphs.beforeRun = (graph) => {
    if (graph === "denoiser_body" && harness.counters.samples_admitted === 1) {
      const actions = Array.from({ length: 4 }, () => marked(3, 4)).flat();
      harness.loop.submit({ ...realtime("R", REALTIME), actions });
    }
    if (acted || harness.counters.samples_parked === 0) return;
    acted = true;
    act(harness);
  };
  harness.loop.submit(bulk("b", 1));
  await harness.finish("b", "R");
  return harness;
}

describe("a parked sample", () => {
  test("that is cancelled leaves at once", async () => {
    let rowsAtCancel = 0;
    const harness = await parkedThen((harness) => {
      rowsAtCancel = rowsOfMark(harness, 1);
      harness.loop.cancel("b");
    });
    expect(rowsOfMark(harness, 1)).toBe(rowsAtCancel);
    expect(harness.events.filter(({ id }) => id === "b").at(-1)).toEqual({ type: "cancelled", id: "b" });
    expect(framesOf(harness, "R", 3)).toHaveLength(4 * CHUNK);
    expect(harness.counters.samples_resumed).toBe(0);
  });

  test("that is left alone finishes after all", async () => {
    const harness = await parkedThen(() => undefined);
    expect(framesOf(harness, "b")).toHaveLength(6 * CHUNK);
  });
});

test("a cancelled rollout makes room for one that waits, also while the engine sleeps", async () => {
  const harness = await createHarness({ takesFrames: false });
  const actions = Array.from({ length: ROWS_MAX }, () => marked(1, 40)).flat();
  harness.loop.submit(request("held up", { actions }));
  harness.loop.submit(request("waiting", { actions: marked(2, 1) }));
  const finished = harness.finish("held up", "waiting");
  await expect.poll(() => harness.busy, { timeout: 20_000 }).toEqual([true, false]);
  harness.loop.cancel("held up");
  await finished;
  expect(framesOf(harness, "waiting")).toHaveLength(CHUNK);
});
