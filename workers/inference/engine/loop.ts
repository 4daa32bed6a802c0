/**
 * The engine: plan → run → apply over all live samples, one forward at a time.
 *
 * 1. A request is a rollout: one start frame, K action sequences. It waits in line.
 * 2. Its candidates become live samples, oldest rollout first, as long as the engine holds fewer than
 *    `max_batch_samples` of them; a rollout with more candidates than that goes through in waves.
 * 3. The first of them looks up the prompt's text tensors and the schedule's timestep rows for all, computing what is
 *    not known yet.
 * 4. `planForward` picks a stage and the samples that take it together.
 * 5. Their rows are stacked, the stage's graphs run, the results are split.
 * 6. Each sample moves on; decoded frames go out at once, block by block. One that is too far ahead of whoever takes
 *    its frames sits out until they are taken.
 * 7. A sample at its end leaves; when the last candidate has left, the rollout is finished.
 * 8. Between two forwards messages are served: new requests join, cancelled ones leave, a stop stops.
 */
import { strict as assert } from "node:assert";

import type { Manifest } from "#contract/manifest.ts";

import { createConditioning } from "./conditioning.ts";
import type { EngineCounters } from "./counters.ts";
import type { Graphs } from "./graphs.ts";
import { planForward, type Stage } from "./plan.ts";
import { createRunChain } from "./run-chain.ts";
import {
  applyBlock,
  applyEncoded,
  applyVelocities,
  type ConditioningFrame,
  createFrame,
  createSample,
  decodeRow,
  denoiseRows,
  rowsNeeded,
  type Sample,
  type SampleSpec,
  stageOf,
} from "./sample.ts";
import { bytesOf, rowOf, rowsOf, type Tensor } from "./tensor.ts";

/** As many frames as the canonical rollout has: only a longer one ever waits for its encoder. Bounds memory. */
const FRAMES_AHEAD_MAX = 48;

export interface EngineRequest {
  /** Unique among the requests in hand. */
  readonly id: string;
  /** RGB pixels at the model's resolution. */
  readonly frame: Uint8Array;
  /** One sequence a candidate, `[T, action_dim]` in the environment's units, T a multiple of chunk_size. */
  readonly actions: readonly Float32Array[];
  /** Any integer; taken modulo 2^64. All candidates share it. */
  readonly seed: bigint;
  readonly numSteps: number;
  readonly guidance: number;
  readonly prompt: string;
  /** Its samples share forwards with nobody, not even with each other. */
  readonly alone: boolean;
}

export type EngineEvent =
  | { readonly type: "frames"; readonly id: string; readonly candidate: number; readonly frames: Uint8Array }
  | { readonly type: "finished"; readonly id: string; readonly engineWallMs: number }
  | { readonly type: "cancelled"; readonly id: string };

export interface Loop {
  submit(request: EngineRequest): void;
  /** The rollout's samples leave before the next forward; unknown ids are ignored. */
  cancel(id: string): void;
  /** The receiver of `frames` events has dealt with so many frames of a candidate. */
  taken(id: string, candidate: number, frames: number): void;
  /** Runs until `stop`; rejects at the first fault of a graph, after which the engine is not to be used. */
  run(): Promise<void>;
  /** Ends `run` before the next forward, whatever is in hand. */
  stop(): void;
}

export interface LoopOptions {
  readonly manifest: Manifest;
  readonly graphs: Graphs;
  readonly counters: EngineCounters;
  /** Called between forwards; `frames` are the receiver's to keep. */
  readonly emit: (event: EngineEvent) => void;
  /** Called after each run of a graph. */
  readonly onRun: () => void;
  /** Called with false when there is nothing to run, with true when there is again. */
  readonly onBusy: (busy: boolean) => void;
  /** Milliseconds from any origin. */
  readonly now: () => number;
}

/** What the candidates of a rollout have in common. */
type Shared = Pick<SampleSpec, "text" | "nullText" | "timesteps">;

interface RolloutInHand {
  readonly request: EngineRequest;
  readonly start: ConditioningFrame;
  shared: Shared | null;
  candidatesAdmitted: number;
  candidatesFinished: number;
  startedAt: number | null;
}

export async function createLoop(options: LoopOptions): Promise<Loop> {
  const { manifest, graphs, counters, emit, now } = options;
  const samplesMax = manifest.engine.max_batch_samples;
  const runChain = createRunChain(graphs, counters, options.onRun);
  const conditioning = await createConditioning(manifest, runChain, counters);

  /** In order of arrival, as `live` is. */
  const rollouts = new Map<string, RolloutInHand>();
  let live: Sample[] = [];
  const state = { stopped: false, wake: null as (() => void) | null };

  async function admit(): Promise<void> {
    for (const rollout of rollouts.values()) {
      const { id, actions, seed, guidance, alone } = rollout.request;
      while (live.length < samplesMax && rollout.candidatesAdmitted < actions.length) {
        rollout.startedAt ??= now();
        rollout.shared ??= await share(rollout.request);
        // That wait is where a cancellation can come in.
        const candidate = rollout.candidatesAdmitted++;
        const sequence = actions[candidate];
        if (!rollouts.has(id) || !sequence) break;
        const own = { rolloutId: id, candidate, seed, guidance, alone, start: rollout.start, actions: sequence };
        live.push(createSample({ ...own, ...rollout.shared }, manifest));
        counters.samples_admitted += 1;
      }
    }
  }

  async function share({ prompt, numSteps }: EngineRequest): Promise<Shared> {
    return {
      text: await conditioning.text(prompt),
      nullText: await conditioning.text(null),
      timesteps: await conditioning.timesteps(numSteps),
    };
  }

  async function encode(samples: readonly Sample[]): Promise<void> {
    const waiting = [...new Set(samples.map((sample) => sample.conditioning))];
    const encoded = await runChain(
      "encode",
      waiting.map(({ frame }) => ({ frame })),
    );
    for (const [i, frame] of waiting.entries()) frame.encoded = rowsOf(encoded, i);
    // Also those that were not in this forward: whoever holds the frame has its latent now.
    for (const sample of live) if (waiting.includes(sample.conditioning)) applyEncoded(sample);
  }

  async function denoise(samples: readonly Sample[]): Promise<void> {
    const rows = samples.map(denoiseRows);
    const { velocity } = await runChain("denoise", rows.flat());
    counters.denoise_batches[samples.length] = (counters.denoise_batches[samples.length] ?? 0) + 1;
    let row = 0;
    for (const [i, sample] of samples.entries()) {
      applyVelocities(
        sample,
        (rows[i] ?? []).map(() => rowOf(given(velocity), row++)),
      );
    }
  }

  async function decode(samples: readonly Sample[]): Promise<void> {
    const rows = samples.map(decodeRow);
    const output = await runChain("decode", rows);
    for (const [i, sample] of samples.entries()) {
      const frames = rowOf(given(output["frames"]), i);
      const blockLatents = output["block_latents"]
        ? rowOf(output["block_latents"], i)
        : given(rows[i]?.["block_latents"]);
      applyBlock(sample, blockLatents, frames);
      const { rolloutId: id, candidate } = sample.spec;
      sample.framesAhead += manifest.shapes.block_frames;
      if (rollouts.has(id)) emit({ type: "frames", id, candidate, frames: bytesOf(frames).slice() });
    }
  }

  const runStage = { encode, denoise, decode } satisfies Record<Stage, (samples: readonly Sample[]) => Promise<void>>;

  function dismissFinished(): void {
    for (const { spec, finished } of live) {
      const rollout = rollouts.get(spec.rolloutId);
      if (!finished || !rollout) continue;
      counters.samples_finished += 1;
      rollout.candidatesFinished += 1;
      if (rollout.candidatesFinished < rollout.request.actions.length) continue;
      rollouts.delete(spec.rolloutId);
      emit({ type: "finished", id: spec.rolloutId, engineWallMs: now() - (rollout.startedAt ?? now()) });
    }
    live = live.filter((sample) => !sample.finished);
  }

  /** Until a request, taken frames or a stop. Nothing can come in between the caller's look and this. */
  async function sleep(): Promise<void> {
    options.onBusy(false);
    await new Promise<void>((resolve) => {
      state.wake = resolve;
    });
    options.onBusy(true);
  }

  return {
    submit(request) {
      assert(!rollouts.has(request.id), `${request.id} is in hand already`);
      rollouts.set(request.id, {
        request,
        start: createFrame(request.frame, manifest.shapes),
        shared: null,
        candidatesAdmitted: 0,
        candidatesFinished: 0,
        startedAt: null,
      });
      state.wake?.();
    },

    cancel(id) {
      if (!rollouts.delete(id)) return;
      live = live.filter((sample) => sample.spec.rolloutId !== id);
      emit({ type: "cancelled", id });
    },

    taken(id, candidate, frames) {
      const sample = live.find(({ spec }) => spec.rolloutId === id && spec.candidate === candidate);
      if (sample) sample.framesAhead -= frames;
      state.wake?.();
    },

    async run() {
      options.onBusy(true);
      while (!state.stopped) {
        await admit();
        const ready = live.filter(({ framesAhead }) => framesAhead < FRAMES_AHEAD_MAX);
        const plan = planForward(
          ready.map((sample) => ({
            sample,
            stage: stageOf(sample),
            rows: rowsNeeded(sample),
            alone: sample.spec.alone,
          })),
          samplesMax,
        );
        if (plan === null) {
          // A rollout that came during `admit` is not live yet.
          if (rollouts.size === 0 || live.length > 0) await sleep();
          continue;
        }
        await runStage[plan.stage](plan.samples.map(({ sample }) => sample));
        dismissFinished();
      }
    },

    stop() {
      state.stopped = true;
      state.wake?.();
    },
  };
}

/** The bundle check made sure that the graphs give it. */
function given(tensor: Tensor | undefined): Tensor {
  assert(tensor);
  return tensor;
}
