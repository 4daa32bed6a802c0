/**
 * The claim: everything except the engine (queue, debit, settlement, blobs) costs little. Measured side by side in one
 * run, in alternating rounds:
 *
 *   engine            the bare engine in its thread, nothing around it (the baseline)
 *   engine + encode   the same with every video encoded by ffmpeg
 *   full, PostgreSQL  the whole system over HTTP, queue on the embedded PostgreSQL
 *   full, Redis       the same with the queue on Redis
 *
 * Below each table: where the wall of a rollout went, from the rollouts' own rows.
 *
 * For one caller and for as many as the engine holds, at the bundle's own number of steps and at one where a rollout's
 * engine wall is a second or more. Share = 1 − (rollouts a second of the row ÷ of the row it is compared with).
 * Prints its tables and writes them to bench/results/overhead.md, and all figures to overhead.json. `npm run bench`
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { createLog } from "#platform/log.ts";
import { dream } from "#cli/customer.ts";
import { npy } from "#test/support/npy.ts";
import { ensureRedis } from "#test/support/redis-server.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { decodeFrame } from "#workers/inference/inputs.ts";
import { createSlots } from "#platform/slots.ts";
import { startEncoding } from "#workers/inference/video/encode.ts";
import { type Encoder, startEncoder } from "#workers/inference/video/encoder.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { describeMachine, median } from "./machine.ts";
import { type ServedSystem, type Stages, startServedSystem } from "./served-system.ts";

const ROUNDS = 5;
const ROLLOUTS_PER_ROUND = { one: 4, saturated: 16 } as const;
const WALL_WANTED_MS = 1_200;
const RUN_TIMEOUT_MS = 60_000;

type Variant = "engine" | "engine + encode" | "full, PostgreSQL" | "full, Redis";
/** Runs one rollout from start to end. */
type RunOne = (seed: number, numSteps: number) => Promise<void>;

interface Inputs {
  readonly manifest: Manifest;
  readonly frame: Buffer;
  readonly pixels: Uint8Array;
  readonly actionsNpy: Buffer;
  readonly actions: Float32Array;
}

const said: string[] = [];
/** To the terminal and into the report. */
function say(line: string): void {
  console.log(line);
  said.push(line);
}

async function main(): Promise<void> {
  const inputs = await readInputs();
  const log = createLog("bench", "warn");
  const bundleDir = join("models", inputs.manifest.slug);
  const engine = await startEngine({
    bundleDir,
    manifest: inputs.manifest,
    providers: ["cpu"],
    runTimeoutMs: RUN_TIMEOUT_MS,
    log,
  });
  const workDir = await mkdtemp(join(tmpdir(), "dream-bench-videos-"));
  const encoder = startEncoder({ ffmpegPath: await findFfmpeg(undefined), log });
  const redis = await ensureRedis();
  const onPostgres = await startServedSystem(null);
  const onRedis = await startServedSystem(redis.url);
  try {
    const variants: [Variant, RunOne][] = [
      ["engine", (seed, steps) => runBare(engine, inputs, seed, steps)],
      ["engine + encode", encoding(engine, encoder, inputs, workDir)],
      ["full, PostgreSQL", (seed, steps) => runFull(onPostgres, inputs, seed, steps)],
      ["full, Redis", (seed, steps) => runFull(onRedis, inputs, seed, steps)],
    ];
    const stepsOfBundle = inputs.manifest.sampler.default_num_steps;
    const stepsForAWallOfASecond = await findSteps((steps) => runBare(engine, inputs, 0, steps), stepsOfBundle);
    const report = [];
    for (const numSteps of new Set([stepsOfBundle, stepsForAWallOfASecond])) {
      for (const callers of [1, inputs.manifest.engine.max_batch_samples]) {
        const measured = await measure(variants, numSteps, callers);
        const stages = {
          "full, PostgreSQL": await onPostgres.stagesOfLatest(ROUNDS * measured.rollouts_per_round),
          "full, Redis": await onRedis.stagesOfLatest(ROUNDS * measured.rollouts_per_round),
        };
        for (const [name, means] of Object.entries(stages)) printStages(name, means);
        report.push({ ...measured, stages });
      }
    }
    await mkdir("bench/results", { recursive: true });
    const machine = describeMachine();
    const result = { made_by: "npm run bench", machine, model: inputs.manifest.slug, report };
    await writeFile("bench/results/overhead.json", `${JSON.stringify(result, null, 2)}\n`);
    const heading = [
      "# What everything but the engine costs",
      "",
      `Made by \`npm run bench\` (bench/overhead.ts says what is measured) with ${inputs.manifest.slug} on ${machine.cores} cores of ` +
        `${machine.cpu}, Node ${machine.node}. Medians of ${ROUNDS} alternating rounds; ratios count, the times are this machine's.`,
    ];
    await writeFile("bench/results/overhead.md", `${[...heading, ...said].join("\n")}\n`);
  } finally {
    await Promise.all([onPostgres.stop(), onRedis.stop(), encoder.stop(), engine.stop()]);
    await redis.stop();
    await rm(workDir, { recursive: true, force: true });
  }
}

const percent = (share: number | null): string => (share === null ? "" : `${(100 * share).toFixed(1)} %`);

async function measure(variants: readonly [Variant, RunOne][], numSteps: number, callers: number) {
  const perSecond = new Map<Variant, number[]>();
  const count = callers === 1 ? ROLLOUTS_PER_ROUND.one : ROLLOUTS_PER_ROUND.saturated;
  for (const [, run] of variants) await run(0, numSteps); // warm
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, run] of variants) {
      // Seeds differ everywhere, so that no request finds an undelivered twin.
      const seeds = Array.from({ length: count }, (_, i) => 1 + round * count + i);
      const startedAt = performance.now();
      await Promise.all(
        Array.from({ length: callers }, async () => {
          for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) await run(seed, numSteps);
        }),
      );
      const rate = (count / (performance.now() - startedAt)) * 1000;
      perSecond.set(name, [...(perSecond.get(name) ?? []), rate]);
      process.stderr.write(
        `  ${numSteps} steps, ${callers} callers, round ${round + 1}: ${name} ${rate.toFixed(2)}/s\n`,
      );
    }
  }
  const rates = new Map([...perSecond].map(([name, values]) => [name, median(values)]));
  const bare = rates.get("engine") ?? Number.NaN;
  const encoded = rates.get("engine + encode") ?? Number.NaN;
  say(`\n## ${numSteps} steps a block, ${callers === 1 ? "one caller" : `${callers} callers (saturated)`}`);
  say("");
  say("| variant | rollouts/s | wall a rollout | share beside the engine | share without encoding |");
  say("|---|---|---|---|---|");
  const rows = [...rates].map(([name, rate]) => {
    const row = {
      variant: name,
      rollouts_per_s: rate,
      share_of_everything: 1 - rate / bare,
      share_without_encoding: name.startsWith("full") ? 1 - rate / encoded : null,
    };
    say(
      `| ${name} | ${rate.toFixed(2)} | ${(1000 / rate).toFixed(0)} ms | ${percent(row.share_of_everything)} | ` +
        `${percent(row.share_without_encoding)} |`,
    );
    return row;
  });
  return { num_steps: numSteps, callers, rounds: ROUNDS, rollouts_per_round: count, rows };
}

function printStages(name: string, stages: Stages): void {
  const parts = Object.entries(stages).map(
    ([stage, ms]) => `${stage.replace(/_ms$/, "").replaceAll("_", " ")} ${ms.toFixed(0)}`,
  );
  say(`\n${name}, mean ms: ${parts.join(", ")}`);
}

async function runBare(engine: Engine, inputs: Inputs, seed: number, numSteps: number): Promise<void> {
  await engine.submit(requestOf(inputs, seed, numSteps), () => undefined).done;
}

function encoding(engine: Engine, encoder: Encoder, inputs: Inputs, workDir: string): RunOne {
  const { width, height, fps } = inputs.manifest.shapes;
  const slots = createSlots(inputs.manifest.engine.max_batch_samples);
  const frames = inputs.actions.length / inputs.manifest.shapes.action_dim + 1;
  return async (seed, numSteps) => {
    const file = join(workDir, `${seed}.mp4`);
    const video = startEncoding({ encoder, file, width, height, fps, frames, slots });
    await video.write(inputs.pixels);
    await engine.submit(requestOf(inputs, seed, numSteps), (_, pixels) => video.write(pixels)).done;
    await video.finish();
  };
}

function requestOf(inputs: Inputs, seed: number, numSteps: number) {
  return {
    id: `bench-${seed}-${numSteps}`,
    frame: inputs.pixels.slice(),
    actions: [inputs.actions],
    seed: BigInt(seed),
    lane: "realtime" as const,
    spec: "served" as const,
    numSteps,
    guidance: 0,
    prompt: "",
    alone: false,
  };
}

async function runFull(system: ServedSystem, inputs: Inputs, seed: number, numSteps: number): Promise<void> {
  const { frame, actionsNpy: actions } = inputs;
  const fields = { seed: String(seed), num_steps: String(numSteps) };
  await dream({ url: system.url, apiKey: system.apiKey, frame, actions, fields });
}

/** Steps a block at which one rollout keeps the engine busy for a second or more. */
async function findSteps(run: (steps: number) => Promise<void>, from: number): Promise<number> {
  await run(from);
  const startedAt = performance.now();
  await run(from);
  const wallMs = performance.now() - startedAt;
  return wallMs >= WALL_WANTED_MS ? from : Math.min(100, Math.ceil((from * WALL_WANTED_MS) / wallMs));
}

async function readInputs(): Promise<Inputs> {
  const [manifest] = await loadManifests("models");
  if (!manifest) throw new Error("no bundle under models/");
  const example = join("models", manifest.slug, "example");
  const frame = await readFile(join(example, "start_frame.png"));
  const actionsNpy = await readFile(join(example, "actions.npy"));
  return { manifest, frame, pixels: await decodeFrame(frame, manifest), actionsNpy, actions: npy.read(actionsNpy) };
}

await main();
