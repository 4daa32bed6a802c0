/** What somebody waits for is hardly slower while its worker is full of what nobody waits for: the shipped model. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { eventually } from "./support/eventually.ts";
import { createWorkersHere, type WorkersHere } from "./support/workers-here.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

/** Of a realtime rollout's wall beside that on an idle worker, the quickest of each in one run. */
const RATIO_MAX = 3;
const ROLLOUTS = 5;
const CHUNKS = 2;
const BULK_CHUNKS = 12;
/** Bulk rollouts that may be done while realtime is measured: as many more are there as fill the worker. */
const BULK_DONE_MAX = 2;
/** As the job says. */
const STEPS = 2;
/** In env units, in the middle of the table. */
const ACTION = 256;

let place: Workplace;
let workers: WorkersHere;
beforeAll(async () => {
  place = await createWorkplace({ model: "pusht-small" });
  workers = createWorkersHere(place);
});
afterEach(() => workers.stop());
afterAll(() => place.stop());

interface Took {
  /** From its job being added to its outcome, in ms. */
  readonly wall: number;
  /** The part of it in which nothing was done for it: not fetched, dreamed or encoded. */
  readonly waiting: number;
}

async function run(chunks: number): Promise<Took> {
  const { id, data } = await place.prepare({ actions: [ACTION], chunks });
  const startedAt = performance.now();
  await place.predictions.add(id, data);
  const outcome = await place.outcomeOf(id, 60_000);
  const wall = performance.now() - startedAt;
  if (outcome.kind !== "succeeded") throw new Error(`it ${outcome.kind}`);
  const { fetch_ms, engine_wall_ms, encode_ms } = outcome.result.timings;
  return { wall, waiting: wall - fetch_ms - engine_wall_ms - encode_ms };
}
/** The quickest of some: what else this machine does only adds. */
async function quickest(): Promise<Took> {
  const took: Took[] = [];
  for (let n = 0; n < ROLLOUTS; n++) took.push(await run(CHUNKS));
  return {
    wall: Math.min(...took.map(({ wall }) => wall)),
    waiting: Math.min(...took.map(({ waiting }) => waiting)),
  };
}

test(
  "a full worker's realtime rollout takes at most three times as long, and bulk loses nothing",
  { timeout: 240_000 },
  async () => {
    const { engine } = await workers.start();
    const { chunk_size: chunkSize, block_frames: blockFrames } = place.manifest.shapes;
    await run(1); // whatever is done once
    const before = await quickest();

    const idleRollouts = ROLLOUTS + 1;
    const bulk = await Promise.all(
      Array.from({ length: engine.samplesMax + BULK_DONE_MAX }, () =>
        place.submit({ actions: [ACTION], chunks: BULK_CHUNKS, job: { lane: "bulk" } }),
      ),
    );
    await eventually(() => engine.stats.samples_admitted === idleRollouts + engine.samplesMax);
    const full = await quickest();
    expect(bulk.filter(({ id }) => place.settled.has(id)).length).toBeLessThanOrEqual(BULK_DONE_MAX); // it was full all the time
    expect(engine.stats.samples_parked).toBeGreaterThan(0);

    for (const { id } of bulk) expect(await place.outcomeOf(id, 120_000)).toMatchObject({ kind: "succeeded" });
    expect(engine.stats.samples_resumed).toBe(engine.stats.samples_parked);

    // Idle before and after: what else the machine does may change meanwhile.
    const after = await quickest();
    const idle = Math.max(before.wall, after.wall);
    const measured = JSON.stringify({ before, full, after });
    expect(full.wall / idle, measured).toBeLessThan(RATIO_MAX);
    // Behind a full worker it would wait for a rollout six times as long as itself.
    expect(full.waiting, measured).toBeLessThan(Math.max(before.waiting, after.waiting) + idle);
    // Every block was denoised and decoded once, as if nobody had ever made way.
    const chunks = 1 + 3 * ROLLOUTS * CHUNKS + bulk.length * BULK_CHUNKS;
    const blocks = (chunks * chunkSize) / blockFrames;
    expect(engine.stats.rows.decoder).toBe(blocks);
    expect(engine.stats.rows.denoiser_body).toBe(blocks * STEPS);
  },
);
