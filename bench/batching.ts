/**
 * The claim: requests that join and leave between denoising steps wait less than batches do that run to their end, at no
 * less throughput. Mixed requests (K = 1 and 8, both lanes, lengths, steps, guidance, seeds) come as a seeded Poisson process, the
 * same for three policies in front of the same warm engine:
 *
 *   continuous batching        submitted at arrival; the engine decides from step to step, realtime first
 *   batches run to completion  what waits, up to as many samples as the engine takes, starts together; the next batch only
 *                              when all of it is done: dynamic batching as servers do it, without their padding
 *   no batching                one sample at a time, in order of arrival
 *
 * First everything at once, which tells what each policy can do at most; then shares of what no batching can do. Latencies
 * count from when a request was due. On a CPU a forward's time grows with every row, so that batching has little throughput to
 * give there: what differs is who waits for whom.
 *
 * Environment: BUNDLES (folders), LOADS (shares), DECKS (of 16 requests, for each load), LENGTHS, STEPS, GUIDANCE, BENCH=short,
 * RESULTS (folder). Writes batching.md, .json and a chart for each bundle to bench/results. `npm run bench:batching`
 */
import type { Manifest } from "#contract/manifest.ts";
import type { Engine } from "#workers/inference/engine/engine.ts";

import { arrivalsOf, mixedRequests, type Mix, type MixedRequest } from "./batching/mix.ts";
import { POLICIES, POLICY_NAMES, type PolicyName, type Submit } from "./batching/policies.ts";
import { type Answer, type BundleRuns, chartFileOf, chartOf, figuresOf, linesOf, type Run } from "./batching/report.ts";
import { type Bundle, dreamOn, isScaled, readBundles, requestOf, startOn } from "./bundle-engine.ts";
import { type HeldOutRollout, loadHeldOut } from "./held-out.ts";
import { openLoop } from "./peers/load.ts";
import { progress } from "./peers/measure.ts";
import { numberOf, numbersOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const SEED = 6;

/** How much work a bundle is asked for; the scaled one takes long, and gets less. */
interface Plan {
  readonly mix: Mix;
  readonly decks: number;
  readonly loads: readonly number[];
}

function planOf(bundle: Bundle): Plan {
  const isLarge = isScaled(bundle);
  const { chunk_size: chunk } = bundle.manifest.shapes;
  const mix = {
    lengths: numbersOf("LENGTHS", isLarge || SHORT ? [chunk] : [chunk, 2 * chunk, 4 * chunk]),
    steps: numbersOf("STEPS", SHORT ? [1] : isLarge ? [1, 2, 3] : [1, 2]),
    guidance: numberOf("GUIDANCE", 1.5),
  };
  return {
    mix,
    decks: numberOf("DECKS", isLarge || SHORT ? 1 : 2),
    loads: numbersOf("LOADS", SHORT ? [1] : isLarge ? [0.6, 1] : [0.5, 0.8, 1.1]),
  };
}

async function main(): Promise<void> {
  const measured: BundleRuns[] = [];
  for (const bundle of await readBundles(process.env)) measured.push(await measureOn(bundle));
  await writeReport({
    name: "batching",
    title: "Continuous batching beside batches and beside none",
    how:
      "The same requests at the same times for all policies, on the same engine. On a CPU, where a forward's time grows with " +
      "every row, batching has little throughput to give; what differs is who waits for whom. A P99 of few requests is their slowest.",
    lines: measured.flatMap(linesOf),
    figures: {
      bundles: measured.map(({ model, mix, runs }) => ({
        model,
        mix,
        runs: runs.map((run) => ({
          policy: run.policy,
          load: run.load,
          samples_a_forward: run.samples_a_forward,
          ...figuresOf(run),
          answers: run.answers.map(({ request, ...times }) => ({ ...request, seed: Number(request.seed), ...times })),
        })),
      })),
    },
    charts: Object.fromEntries(measured.map((runs) => [chartFileOf(runs.model), chartOf(runs)])),
  });
}

async function measureOn(bundle: Bundle): Promise<BundleRuns> {
  const { manifest } = bundle;
  const { mix, decks, loads } = planOf(bundle);
  const { chunk_size: chunk } = manifest.shapes;
  const rollouts = await loadHeldOut(manifest, { actions: Math.max(...mix.lengths) });
  const engine = await startOn(bundle);
  try {
    const submit = submitterOf(engine, rollouts, manifest);
    for (const numSteps of mix.steps) {
      const { guidance } = mix;
      const request: MixedRequest = { k: 1, lane: "bulk", actions: chunk, numSteps, guidance, seed: 1n };
      await submit(request, { candidates: [0], lanes: "one" }, () => undefined); // warm
    }
    const runs: Run[] = [];
    const runAll = async (load: number | null, requests: readonly MixedRequest[], arrivals: readonly number[]) => {
      for (const policy of POLICY_NAMES) {
        const run = await runOne(engine, submit, { policy, load, requests, arrivals });
        runs.push(run);
        const { requests_per_s, lanes } = figuresOf(run);
        const when = load === null ? "all at once" : `load ${load}`;
        progress(
          `${manifest.slug}, ${when}, ${policy}: ${requests_per_s.toFixed(2)} requests/s, ` +
            `P99 realtime ${lanes.realtime.p99_ms.toFixed(0)} ms, all ${lanes.all.p99_ms.toFixed(0)} ms`,
        );
      }
    };
    const requests = mixedRequests(decks, mix, SEED);
    const allAtOnce = requests.map(() => 0);
    await runAll(null, requests, allAtOnce);
    const alone = runs.find(({ policy }) => policy === "no batching");
    if (!alone) throw new Error("no batching was not measured");
    const atMostPerS = alone.answers.length / alone.seconds;
    for (const load of loads) {
      await runAll(load, requests, arrivalsOf(requests.length, load * atMostPerS, SEED));
    }
    return { model: manifest.slug, mix: textOf(mix), runs };
  } finally {
    await engine.stop();
  }
}

function submitterOf(engine: Engine, rollouts: readonly HeldOutRollout[], { shapes }: Manifest): Submit {
  const rolloutOf = (number: number): HeldOutRollout => {
    const rollout = rollouts[number % rollouts.length];
    if (!rollout) throw new Error("no held-out rollouts");
    return rollout;
  };
  return async ({ lane, actions, numSteps, guidance, seed }, { candidates, lanes }, onFrame) => {
    const first = Number(seed);
    const sequences = candidates.map((candidate) =>
      rolloutOf(first + candidate).actions.slice(0, actions * shapes.action_dim),
    );
    // In one batch of a server there are no lanes.
    const own = { actions: sequences, lane: lanes === "own" ? lane : ("realtime" as const), seed };
    await dreamOn(engine, requestOf(rolloutOf(first), { ...own, numSteps, guidance }), onFrame);
  };
}

interface Offered {
  readonly policy: PolicyName;
  readonly load: number | null;
  readonly requests: readonly MixedRequest[];
  readonly arrivals: readonly number[];
}

async function runOne(engine: Engine, submit: Submit, { policy, load, requests, arrivals }: Offered): Promise<Run> {
  const serve = POLICIES[policy](submit, engine.samplesMax);
  const before = engine.stats.denoise_batches;
  const answers: Answer[] = [];
  const startedAt = performance.now();
  const { failed } = await openLoop(async (number) => {
    const request = requests[number];
    const dueMs = arrivals[number];
    if (!request || dueMs === undefined) throw new Error(`there is no request ${number}`);
    const sinceDue = (): number => performance.now() - startedAt - dueMs;
    let firstFrameMs = Number.NaN;
    await serve(request, () => {
      if (Number.isNaN(firstFrameMs)) firstFrameMs = sinceDue();
    });
    answers.push({ request, firstFrameMs, doneMs: sinceDue() });
  }, arrivals);
  if (failed > 0) throw new Error(`${failed} requests failed under ${policy}`);
  const seconds = (performance.now() - startedAt - (arrivals[0] ?? 0)) / 1000;
  return { policy, load, seconds, samples_a_forward: meanBatch(before, engine.stats.denoise_batches), answers };
}

type Batches = Engine["stats"]["denoise_batches"];

function meanBatch(before: Batches, after: Batches): number {
  let [forwards, samples] = [0, 0];
  for (const [size, count] of Object.entries(after)) {
    const since = count - (before[Number(size)] ?? 0);
    forwards += since;
    samples += since * Number(size);
  }
  return samples / forwards;
}

const textOf = ({ lengths, steps, guidance }: Mix): string =>
  `${lengths.join(", ")} actions in ${steps.join(", ")} steps, a quarter with guidance ${guidance}, an eighth with ` +
  "8 candidates, three eighths in the bulk lane";

await main();
