/** Bundles on the bare engine, for benchmarks: found, started, asked for rollouts, and what the engine did for them. */
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";

import type { Manifest, OptimisationName } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { createLog } from "#platform/log.ts";
import type { EngineStats } from "#workers/inference/engine/counters.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import type { EngineRequest } from "#workers/inference/engine/loop.ts";
import type { SessionTuning } from "#workers/inference/engine/session-tuning.ts";

import type { HeldOutRollout } from "./held-out.ts";
import { progress } from "./peers/measure.ts";

const REFERENCE = "models/pusht-small";
/** Not in the repository; says what the optimisations do on a network of a large model's layout. */
const SCALED = "bench/bundles/dreamdojo-scaled";
const RUN_TIMEOUT_MS = 120_000;

export interface Bundle {
  readonly dir: string;
  readonly manifest: Manifest;
}

/** The folders of BUNDLES, comma-separated; unset: the reference bundle and, where it was built, the scaled one. */
export async function readBundles(env: NodeJS.ProcessEnv): Promise<Bundle[]> {
  const { BUNDLES: wanted } = env;
  const dirs = wanted === undefined ? [REFERENCE, SCALED] : wanted.split(",");
  const bundles: Bundle[] = [];
  for (const dir of dirs) {
    if (wanted === undefined && !existsSync(join(dir, "model.json"))) {
      progress(`${dir} is not there and left out; models/scaled/build.sh makes it`);
      continue;
    }
    const manifest = (await loadManifests(resolve(dir, ".."))).find(({ slug }) => slug === basename(dir));
    if (!manifest) throw new Error(`BUNDLES: expected folders of model bundles, got ${dir}`);
    bundles.push({ dir, manifest });
  }
  return bundles;
}

/** For measuring, and not a listed model: of a large model's layout, and takes many times as long. */
export const isScaled = ({ dir }: Bundle): boolean => dirname(dir) !== dirname(REFERENCE);

/** `samplesMax`: fewer than the bundle allows, which makes a start quick where one rollout runs at a time. */
export function startOn(
  { dir, manifest }: Bundle,
  how: {
    readonly optimisations?: readonly OptimisationName[] | undefined;
    readonly samplesMax?: number;
    readonly tuning?: SessionTuning;
    readonly providers?: readonly string[];
  } = {},
): Promise<Engine> {
  const { optimisations, samplesMax = manifest.engine.max_batch_samples, tuning = {}, providers = ["cpu"] } = how;
  const engine = { ...manifest.engine, max_batch_samples: samplesMax };
  return startEngine({
    bundleDir: dir,
    manifest: { ...manifest, engine },
    providers,
    tuning,
    runTimeoutMs: RUN_TIMEOUT_MS,
    optimisations,
    log: createLog("bench", "warn"),
  });
}

/** One candidate in the realtime lane, as served, unless `how` says otherwise. */
export function requestOf(
  { frame, actions, seed, prompt }: HeldOutRollout,
  how: Pick<EngineRequest, "numSteps" | "guidance"> & Partial<EngineRequest>,
): EngineRequest {
  const usual = { lane: "realtime", spec: "served", alone: false } as const;
  return { id: randomUUID(), frame, actions: [actions], seed, prompt, ...usual, ...how };
}

export interface Dreamed {
  /** The engine's own count, from the first candidate's start to the last one's end. */
  readonly engineWallMs: number;
  /** From the submission, as the caller sees it. */
  readonly wallMs: number;
  readonly firstFrameMs: number;
}

/** Rejects when the engine fails. `keep` is given all frames, if there is one. */
export async function dreamOn(
  engine: Engine,
  request: EngineRequest,
  keep?: (frames: Uint8Array) => void,
): Promise<Dreamed> {
  const startedAt = performance.now();
  let firstFrameMs = Number.NaN;
  const { done } = engine.submit(request, (_, frames) => {
    if (Number.isNaN(firstFrameMs)) firstFrameMs = performance.now() - startedAt;
    keep?.(frames);
  });
  const result = await done;
  if (result.kind !== "finished") throw new Error(`the engine cancelled ${request.id}`);
  return { engineWallMs: result.engineWallMs, wallMs: performance.now() - startedAt, firstFrameMs };
}

/** A row is one pass (conditional or unconditional) of one sample through the expensive part of one denoising step. */
export interface EngineWork {
  /** Rows through the denoiser's body, and the forwards that held them. */
  readonly body_rows: number;
  readonly bodies: number;
  /** Rows that TeaCache spared. */
  readonly skipped: number;
  /** Rows that guidance 0 spared: the unconditional half of each step. */
  readonly halved: number;
  readonly timestep_hits: number;
  readonly text_hits: number;
  readonly text_lookups: number;
  readonly frames_encoded: number;
}

/** What was done between two readings of `engine.stats`; the first one is to be taken after a rollout. */
export function workBetween(before: EngineStats, after: EngineStats): EngineWork {
  const since = (of: (stats: EngineStats) => number): number => of(after) - of(before);
  return {
    body_rows: since(({ rows }) => rows.denoiser_body + rows.denoiser_body_unfused),
    bodies: since(({ runs }) => runs.denoiser_body + runs.denoiser_body_unfused),
    skipped: since((stats) => stats.teacache_rows_skipped),
    halved: since((stats) => stats.guidance_rows_saved),
    timestep_hits: since((stats) => stats.timestep_lut_hits),
    text_hits: since((stats) => stats.text_cache_hits),
    text_lookups: since((stats) => stats.text_cache_hits + stats.text_cache_misses),
    frames_encoded: since(({ rows }) => rows.frame_encoder),
  };
}
