import { expect, test, vi } from "vitest";

import { createHarness, framesOf, latentsOf, request, sequences } from "./support/loop-harness.ts";
import { runsOf } from "./support/scripted-graphs.ts";
import { CHUNK, tinyManifest } from "./support/tiny-bundle.ts";

test("a sample is encoded, denoised and decoded block by block, chunk after chunk", async () => {
  const harness = await createHarness();
  harness.graphs.runs.length = 0; // what creating the loop ran
  harness.loop.submit(request("a"));
  await harness.finish("a");

  const block = ["denoiser_head", "denoiser_body", "denoiser_tail"];
  const chunk = ["frame_encoder", ...Array.from({ length: CHUNK }, () => [...block, ...block, "decoder"]).flat()];
  expect(harness.graphs.runs.map(({ graph }) => graph)).toEqual(["timestep", ...chunk, ...chunk]);
  expect(runsOf(harness.graphs, "denoiser_body").map(({ position }) => position[0])).toEqual([0, 0, 1, 1, 0, 0, 1, 1]);
  expect(framesOf(harness, "a")).toHaveLength(2 * CHUNK);
  expect(harness.events.at(-1)).toEqual({ type: "finished", id: "a", engineWallMs: 0 });
});

test("a chunk starts from the 8-bit pixels of the last frame before it", async () => {
  const harness = await createHarness();
  harness.loop.submit(request("a", { actions: [new Float32Array(3 * CHUNK).fill(0.3)] }));
  const lastFrames: number[] = [];
  const encoded: number[] = [];
  harness.graphs.beforeRun = (graph, inputs) => {
    if (graph !== "frame_encoder") return;
    lastFrames.push(framesOf(harness, "a").at(-1) ?? 7);
    encoded.push(Number(inputs["frame"]?.data[0]));
  };
  await harness.finish("a");
  expect(encoded).toEqual(lastFrames);
  expect(new Set(encoded).size).toBe(3);
});

test("samples at different steps, seeds, chunks and prompts share one forward", async () => {
  const harness = await createHarness({
    onEvent: (event) => {
      // "b" joins when "a" has come to its second chunk.
      if (event.type === "frames" && event.id === "a" && framesOf(harness, "a").length === CHUNK) {
        harness.loop.submit(request("b", { seed: 9n, prompt: "x", numSteps: 3, actions: sequences(1) }));
      }
    },
  });
  harness.loop.submit(request("a", { numSteps: 5, actions: [new Float32Array(4 * CHUNK).fill(5)] }));
  await harness.finish("a", "b");

  const shared = runsOf(harness.graphs, "denoiser_body").filter(({ rows }) => rows === 2);
  expect(shared.length).toBeGreaterThan(2);
  expect(shared.some(({ t, text }) => t[0] !== t[1] && text[0] !== text[1])).toBe(true);
  expect(framesOf(harness, "b")).toHaveLength(2 * CHUNK);
});

test("guidance 0 runs no unconditional pass: exactly half the rows of a guided rollout", async () => {
  const plain = await createHarness();
  plain.loop.submit(request("a", { prompt: "x" }));
  await plain.finish("a");
  const guided = await createHarness();
  guided.loop.submit(request("a", { prompt: "x", guidance: 1.5 }));
  await guided.finish("a");

  expect(plain.counters.rows.denoiser_body * 2).toBe(guided.counters.rows.denoiser_body);
  expect(plain.counters.runs.denoiser_body).toBe(guided.counters.runs.denoiser_body);
  const [cond, uncond] = runsOf(guided.graphs, "denoiser_body")[0]?.text ?? [];
  expect([cond, uncond]).toEqual([1 + 120 + 3, 2]); // begin + "x", and the null sequence
});

test("K candidates share one encode and one text conditioning", async () => {
  const harness = await createHarness();
  const before = harness.counters.runs.text_encoder;
  harness.loop.submit(request("a", { actions: sequences(3, 1), prompt: "x" }));
  await harness.finish("a");
  expect(harness.counters.runs.frame_encoder).toBe(1);
  expect(harness.counters.rows.frame_encoder).toBe(1);
  expect(harness.counters.runs.text_encoder - before).toBe(1);
  expect(harness.counters.denoise_batches).toEqual({ 3: 2 * CHUNK });
});

test("more candidates than the engine holds go through in waves, with one encode still", async () => {
  const harness = await createHarness();
  harness.loop.submit(request("a", { actions: sequences(10, 1) }));
  await harness.finish("a");
  for (let candidate = 0; candidate < 10; candidate++) expect(framesOf(harness, "a", candidate)).toHaveLength(CHUNK);
  expect(harness.counters.runs.frame_encoder).toBe(1);
  expect(Math.max(...harness.graphs.runs.map(({ rows }) => rows))).toBe(4);
  expect(harness.counters.samples_finished).toBe(10);
});

test("the empty prompt and the null sequence are there from the start, others are encoded once", async () => {
  const harness = await createHarness();
  expect(harness.counters.runs.text_encoder).toBe(2);
  for (const [i, prompt] of ["", "x", "x", "y", "x"].entries())
    harness.loop.submit(request(`r${i}`, { prompt, guidance: 1 }));
  await harness.finish("r0", "r1", "r2", "r3", "r4");
  expect(harness.counters.runs.text_encoder).toBe(4);
  expect(harness.counters.text_cache_hits).toBe(3 + 5); // "", x twice; and the null sequence of each
});

test("a schedule's timestep rows are computed once", async () => {
  const harness = await createHarness();
  for (const [i, numSteps] of [2, 5, 2, 5].entries()) harness.loop.submit(request(`r${i}`, { numSteps }));
  await harness.finish("r0", "r1", "r2", "r3");
  expect(runsOf(harness.graphs, "timestep").map(({ rows }) => rows)).toEqual([2, 5]);
});

test("an alone rollout shares forwards with nobody, not with its own candidates either", async () => {
  const harness = await createHarness();
  harness.loop.submit(request("a", { actions: [new Float32Array(CHUNK).fill(50)] }));
  harness.loop.submit(request("P", { alone: true, actions: sequences(2, 1) }));
  harness.loop.submit(request("b", { actions: [new Float32Array(CHUNK).fill(60)] }));
  await harness.finish("a", "P", "b");
  const batches = runsOf(harness.graphs, "denoiser_body").map(({ action }) => action);
  expect(batches.filter((actions) => actions.some((action) => action < 50)).every(({ length }) => length === 1)).toBe(
    true,
  );
  expect(framesOf(harness, "P", 1)).toHaveLength(CHUNK);
});

test("a result does not depend on what shared the batch", async () => {
  const alone = await createHarness();
  alone.loop.submit(request("a", { seed: 3n, prompt: "x", guidance: 2, actions: sequences(1, 2) }));
  await alone.finish("a");
  const crowd = await createHarness();
  crowd.loop.submit(request("c", { seed: 8n, numSteps: 3, actions: sequences(2, 3) }));
  crowd.loop.submit(request("a", { seed: 3n, prompt: "x", guidance: 2, actions: sequences(1, 2) }));
  await crowd.finish("a", "c");
  expect(framesOf(crowd, "a")).toEqual(framesOf(alone, "a"));
});

test("a cancelled rollout leaves before the next forward, and the others go on", async () => {
  const harness = await createHarness({
    onEvent: (event) => {
      if (event.type === "frames" && event.id === "a") harness.loop.cancel("a");
    },
  });
  harness.loop.submit(request("a", { actions: [new Float32Array(20 * CHUNK)] }));
  harness.loop.submit(request("b", { actions: sequences(1) }));
  await harness.finish("a", "b");
  expect(framesOf(harness, "a")).toHaveLength(1);
  expect(harness.events.filter(({ id }) => id === "a").at(-1)).toEqual({ type: "cancelled", id: "a" });
  expect(framesOf(harness, "b")).toHaveLength(2 * CHUNK);
});

test.each(["text_encoder", "frame_encoder", "denoiser_body", "decoder"] as const)(
  "an id that is in hand again has nothing of the rollout that was cancelled in the %s's run",
  async (where) => {
    const harness = await createHarness();
    let isCancelled = false;
    harness.graphs.beforeRun = (graph) => {
      if (graph !== where || isCancelled) return;
      isCancelled = true;
      harness.loop.cancel("a");
      harness.loop.submit(request("a", { prompt: "y", actions: [new Float32Array(2 * CHUNK).fill(6)] }));
    };
    harness.loop.submit(request("a", { prompt: "x", actions: [new Float32Array(2 * CHUNK).fill(5)] }));
    harness.loop.submit(request("b", { prompt: "x", actions: [new Float32Array(4 * CHUNK).fill(7)] }));
    await harness.finish("b");

    const since = harness.events.findIndex(({ type }) => type === "cancelled");
    const ofA = harness.events.slice(since + 1).filter(({ id }) => id === "a");
    expect(ofA.map(({ type }) => type)).toEqual([...Array.from({ length: 2 * CHUNK }, () => "frames"), "finished"]);
    expect(harness.counters.samples_finished).toBe(2);
    const decoded = runsOf(harness.graphs, "decoder").flatMap(({ action }) => action);
    expect(decoded.filter((action) => action === 5)).toHaveLength(where === "decoder" ? 1 : 0);
  },
);

test("where one row is all that fits, a guided sample's passes go one after the other", async () => {
  const manifest = tinyManifest();
  const narrow = { ...manifest, engine: { ...manifest.engine, max_batch_samples: 1 } };
  const one = request("a", { guidance: 2, prompt: "x", numSteps: 3, actions: sequences(1, 2) });
  const wide = await createHarness();
  const harness = await createHarness({ manifest: narrow });
  for (const { loop } of [wide, harness]) loop.submit(one);
  await wide.finish("a");
  await harness.finish("a");
  const denoising = harness.graphs.runs.filter(({ graph }) => graph.startsWith("denoiser"));
  expect(new Set(denoising.map(({ rows }) => rows))).toEqual(new Set([1]));
  expect(latentsOf(harness, 1)).toHaveLength(2 * CHUNK);
  expect(latentsOf(harness, 1)).toEqual(latentsOf(wide, 1));
});

test("a sample does not run far ahead of whoever takes its frames, and says that it waits", async () => {
  const harness = await createHarness({ takesFrames: false });
  harness.loop.submit(request("long", { actions: [new Float32Array(40 * CHUNK)] }));
  harness.loop.submit(request("short", { actions: sequences(1) }));
  const finished = harness.finish("long", "short");
  await vi.waitFor(() => expect(harness.busy).toEqual([true, false]), 20_000);
  expect(framesOf(harness, "long")).toHaveLength(48);
  expect(framesOf(harness, "short")).toHaveLength(2 * CHUNK);

  harness.loop.taken("long", 0, 40);
  await finished;
  expect(framesOf(harness, "long")).toHaveLength(80);
  expect(harness.busy).toEqual([true, false, true]);
});

test("a fault of a graph ends the loop with its error", async () => {
  const harness = await createHarness();
  harness.graphs.beforeRun = (graph) => {
    if (graph === "denoiser_body") throw new Error("bad node");
  };
  harness.loop.submit(request("a"));
  await expect(harness.finish("a")).rejects.toThrow("bad node");
});

test("a stop leaves what is in hand", async () => {
  const harness = await createHarness({ onEvent: () => harness.loop.stop() });
  harness.loop.submit(request("a", { actions: [new Float32Array(20 * CHUNK)] }));
  await harness.finish("never");
  expect(framesOf(harness, "a")).toHaveLength(1);
});
