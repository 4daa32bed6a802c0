/**
 * What a planner that tries K = 8 action sequences from one frame gains by asking for them in one request:
 *
 *   8 in one request         one start frame, one prompt, 8 candidates
 *   8 requests at once       the same candidates as single rollouts, together
 *   8 requests in a row      each when the one before is done
 *   1 request                K = 1, for scale
 *
 * At the engine (no server, no mp4), on every bundle; and end to end over HTTP with the reference bundle, money and mp4 on:
 * `POST /v1/predict/batch` against `POST /v1/predict`, one worker. All in one run, in rounds in which they take turns. What
 * the candidates of one request share is counted from the engine's own counters. On a CPU a forward's time is near
 * linear in its rows, so that eight together cannot be much quicker than eight in a row; on an accelerator with room to
 * spare they are. One request of eight is ahead of eight at once by what it shares alone.
 *
 * Environment: BUNDLES (folders), ROUNDS, ACTIONS (of a candidate; default four chunks, of the scaled bundle one), STEPS,
 * GUIDANCE, HTTP=off, BENCH=short, RESULTS (folder). Writes mpc.md and .json to bench/results. `npm run bench:mpc`
 */
import sharp from "sharp";

import { createApi } from "#cli/api/client.ts";
import { createForm, type Upload, uploadOf } from "#cli/api/multipart.ts";
import type { Manifest } from "#contract/manifest.ts";
import { npy } from "#test/support/npy.ts";
import type { Engine } from "#workers/inference/engine/engine.ts";

import { type Bundle, dreamOn, isScaled, readBundles, requestOf, startOn, workBetween } from "./bundle-engine.ts";
import { type HeldOutRollout, loadHeldOut } from "./held-out.ts";
import { K, linesOf, type Planned, type Turn, type WayName, WAYS } from "./mpc/report.ts";
import { progress } from "./peers/measure.ts";
import { startServedSystem } from "./served-system.ts";
import { numberOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const ROUNDS = numberOf("ROUNDS", SHORT ? 1 : 3);
const ANSWER_TIMEOUT_MS = 280_000;

interface Work {
  readonly manifest: Manifest;
  /** K of them; the first one's frame is where all candidates start. */
  readonly rollouts: readonly HeldOutRollout[];
  readonly actions: number;
  readonly numSteps: number;
  readonly guidance: number;
}

/** Dreams candidates `from` to `to` in one request; resolves when all frames are there. */
type Ask = (from: number, to: number, seed: number) => Promise<void>;

async function main(): Promise<void> {
  const planned: Planned[] = [];
  const bundles = await readBundles(process.env);
  for (const bundle of bundles) planned.push(await atEngine(bundle));
  const reference = bundles.find((bundle) => !isScaled(bundle));
  if (reference && process.env["HTTP"] !== "off") planned.push(await overHttp(reference));
  await writeReport({
    name: "mpc",
    title: "Eight candidates in one request",
    how:
      `Medians of ${ROUNDS} rounds in which the ways take turns; ratios are medians of the rounds' own. On a CPU a forward's ` +
      "time is near linear in its rows, so that eight together are hardly quicker there than eight in a row. One request of " +
      "eight is ahead of eight at once by what it shares alone, which is counted.",
    lines: planned.flatMap(linesOf),
    figures: { k: K, planned },
  });
}

async function readWork(bundle: Bundle): Promise<Work> {
  const { manifest } = bundle;
  const { sampler, shapes } = manifest;
  const actions = numberOf("ACTIONS", isScaled(bundle) || SHORT ? shapes.chunk_size : 4 * shapes.chunk_size);
  return {
    manifest,
    actions,
    rollouts: await loadHeldOut(manifest, { count: K, actions }),
    numSteps: numberOf("STEPS", SHORT ? 1 : sampler.default_num_steps),
    guidance: numberOf("GUIDANCE", sampler.default_guidance),
  };
}

async function atEngine(bundle: Bundle): Promise<Planned> {
  const work = await readWork(bundle);
  const { numSteps, guidance } = work;
  const engine = await startOn(bundle);
  try {
    const ask: Ask = async (from, to, seed) => {
      const [start] = work.rollouts;
      if (!start) throw new Error("no held-out rollouts");
      const actions = work.rollouts.slice(from, to).map((rollout) => rollout.actions);
      await dreamOn(engine, requestOf(start, { numSteps, guidance, actions, seed: BigInt(seed) }));
    };
    return { ...describe(work), where: "at the engine", rounds: await takeTurns("engine", ask, engine) };
  } finally {
    await engine.stop();
  }
}

async function overHttp(bundle: Bundle): Promise<Planned> {
  const work = await readWork(bundle);
  const { manifest } = work;
  const system = await startServedSystem(null, { WORKERS: "1", DEFAULT_MODEL: manifest.slug });
  try {
    const [start] = work.rollouts;
    if (!start) throw new Error("no held-out rollouts");
    const { height, width, action_dim: dim } = manifest.shapes;
    const frame = await sharp(start.frame, { raw: { height, width, channels: 3 } })
      .png()
      .toBuffer();
    const files = work.rollouts.map(({ actions }, i) =>
      uploadOf(`actions_${i}.npy`, "application/octet-stream", npy.write(actions, [work.actions, dim])),
    );
    const api = createApi({ url: system.url, key: system.apiKey });
    const ask: Ask = async (from, to, seed) => {
      const fields: (readonly [string, string | Upload])[] = [
        ["frame", uploadOf("start_frame.png", "image/png", frame)],
        ...files.slice(from, to).map((file) => ["actions", file] as const),
        ["seed", String(seed)],
        ["num_steps", String(work.numSteps)],
        ["guidance", String(work.guidance)],
        ["prompt", start.prompt],
      ];
      const path = to - from > 1 ? "/v1/predict/batch" : "/v1/predict";
      const answer = await api.open("POST", path, { form: createForm(fields), timeoutMs: ANSWER_TIMEOUT_MS });
      await answer.arrayBuffer();
    };
    const where = "over HTTP, with money and mp4";
    return { ...describe(work), where, rounds: await takeTurns("HTTP", ask, null) };
  } finally {
    await system.stop();
  }
}

const describe = ({ manifest, actions, numSteps, guidance }: Work) => ({
  model: manifest.slug,
  actions,
  num_steps: numSteps,
  guidance,
});

/** `engine`: whose counters say what was shared; null where it is in another process. */
async function takeTurns(where: string, ask: Ask, engine: Engine | null): Promise<Turn[][]> {
  // No two requests are the same, so that none is answered with another's video.
  let seed = 1;
  const run: Record<WayName, () => Promise<unknown>> = {
    "8 in one request": () => ask(0, K, seed++),
    "8 requests at once": () => Promise.all(Array.from({ length: K }, (_, i) => ask(i, i + 1, seed++))),
    "8 requests in a row": async () => {
      for (let i = 0; i < K; i++) await ask(i, i + 1, seed++);
    },
    "1 request": () => ask(0, 1, seed++),
  };
  await run["1 request"](); // warm
  const rounds: Turn[][] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const turns: Turn[] = [];
    const first = round % WAYS.length;
    for (const way of [...WAYS.slice(first), ...WAYS.slice(0, first)]) {
      const before = engine?.stats;
      const startedAt = performance.now();
      await run[way]();
      const wall_ms = performance.now() - startedAt;
      turns.push({ way, wall_ms, work: engine && before ? workBetween(before, engine.stats) : null });
      progress(`${where}, round ${round + 1}, ${way}: ${wall_ms.toFixed(0)} ms`);
    }
    rounds.push(turns);
  }
  return rounds;
}

await main();
