/**
 * The engine: plan → run → apply over all live samples, one forward at a time.
 *
 * 1. A request is a rollout: one start frame, K action sequences, a lane. It waits in line.
 * 2. Its candidates become live samples, the oldest rollout of a lane first, as long as the engine holds fewer than
 *    `rowsMax` of its lane; a rollout with more candidates than that goes through in waves.
 * 3. The first of them looks up the prompt's text tensors and the schedule's timestep rows for all, computing what is
 *    not known yet: while realtime is live, for one bulk rollout between two forwards and no more.
 * 4. `planForward` picks a stage and the samples that take it together, realtime ones first.
 * 5. Their rows are stacked, the stage's graphs run, the results are split.
 * 6. Each sample moves on; decoded frames go out at once, block by block. One that is too far ahead of whoever takes
 *    its frames sits out until they are taken. A bulk sample that found no place is parked: it stays as it is and goes
 *    on from there.
 * 7. A sample at its end leaves; when the last candidate has left, the rollout is finished.
 * 8. Between two forwards messages are served: new requests join, cancelled ones leave, a stop stops.
 */
import { strict as assert } from "node:assert";

import type { Manifest } from "#contract/manifest.ts";
import type { Lane } from "#contract/rollout.ts";

import { createConditioning } from "./conditioning.ts";
import type { EngineCounters } from "./counters.ts";
import { type Graphs, stageGraphsOf } from "./graphs.ts";
import type { SpecName, Specs } from "./optimisations.ts";
import { FIRST_PLAN, type Forward, planForward, type Plannable, type RowLimits } from "./plan.ts";
import { createRunChain } from "./run-chain.ts";
import {
  type ConditioningFrame,
  createFrame,
  createSample,
  isGuided,
  rowsNeeded,
  type Sample,
  type SampleSpec,
  stageOf,
} from "./sample.ts";
import { createStages } from "./stages.ts";

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
  readonly lane: Lane;
  /** With what the process serves, or with every optimisation off. */
  readonly spec: SpecName;
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
  /** `rowsMax` of them, of a forward and of the live samples of a lane. */
  readonly rowLimits: RowLimits;
  readonly specs: Specs;
  readonly counters: EngineCounters;
  /**
   * Called between forwards. `frames` are the receiver's to keep, and to transfer once the loop gives way: all views of a
   * forward's buffer have been given by then, and the loop looks at none of them again.
   */
  readonly emit: (event: EngineEvent) => void;
  /** Called after each run of a graph. */
  readonly onRun: () => void;
  /** Called with false when there is nothing to run, with true when there is again. */
  readonly onBusy: (busy: boolean) => void;
  /** Milliseconds from any origin. */
  readonly now: () => number;
}

const LANES_IN_TURN = ["realtime", "bulk"] as const satisfies readonly Lane[];

/** What the candidates of a rollout have in common. */
type Shared = Pick<SampleSpec, "text" | "nullText" | "timesteps">;

/** What the planner sees of a sample. */
type Ready = Plannable & { readonly sample: Sample };

interface RolloutInHand {
  readonly request: EngineRequest;
  readonly start: ConditioningFrame;
  shared: Shared | null;
  candidatesAdmitted: number;
  candidatesFinished: number;
  startedAt: number | null;
}

export async function createLoop(options: LoopOptions): Promise<Loop> {
  const { manifest, graphs, rowLimits, specs, counters, emit, now } = options;
  const run = createRunChain(graphs, counters, () => {
    state.runs += 1;
    options.onRun();
  });
  const { served } = specs;
  const hasTextKv = graphs.signatures.text_kv !== undefined;
  // One way for all, so that the base spec shares the bodies of those that may skip them.
  const isSplit = served.teacache !== null;

  /** In order of arrival, as `live` is. */
  const rollouts = new Map<string, RolloutInHand>();
  let live: Sample[] = [];
  /** `hasNews`: since the loop last looked who may join. `runs`: of graphs. */
  const state = { stopped: false, hasNews: false, wake: null as (() => void) | null, plan: FIRST_PLAN, runs: 0 };
  const conditioning = await createConditioning({ manifest, run, counters, served, hasTextKv });
  const stageGraphs = {
    served: stageGraphsOf(specs.served, graphs.signatures),
    base: stageGraphsOf(specs.base, graphs.signatures),
  };
  const runStage = createStages({ run, rowsMax: rowLimits.rowsMax, counters, live: () => live, onFrames });

  const liveOf = (lane: Lane): number => live.filter(({ spec }) => spec.lane === lane).length;
  const hasPlaceFor = ({ candidatesAdmitted, request: { actions, lane } }: RolloutInHand): boolean =>
    candidatesAdmitted < actions.length && liveOf(lane) < rowLimits.rowsMax;

  async function admit(): Promise<void> {
    for (const lane of LANES_IN_TURN) {
      for (const rollout of rollouts.values()) {
        if (rollout.request.lane !== lane || !hasPlaceFor(rollout)) continue;
        const runsBefore = state.runs;
        await admitCandidates(rollout);
        if (lane === "bulk" && state.runs > runsBefore && liveOf("realtime") > 0) return;
      }
    }
  }

  async function admitCandidates(rollout: RolloutInHand): Promise<void> {
    const { id, actions, seed, guidance, lane, alone, spec } = rollout.request;
    rollout.startedAt ??= now();
    rollout.shared ??= await share(rollout.request);
    if (rollouts.get(id) !== rollout) return; // cancelled meanwhile
    const ofSpec = { ...rollout.shared, optimisations: specs[spec], graphs: stageGraphs[spec], isSplit };
    while (hasPlaceFor(rollout)) {
      const candidate = rollout.candidatesAdmitted++;
      const sequence = actions[candidate];
      assert(sequence);
      const own = { rolloutId: id, candidate, lane, seed, guidance, alone, start: rollout.start, actions: sequence };
      live.push(createSample({ ...own, ...ofSpec }, manifest));
      counters.samples_admitted += 1;
    }
  }

  async function share({ prompt, numSteps, guidance, spec }: EngineRequest): Promise<Shared> {
    const optimisations = specs[spec];
    return {
      text: await conditioning.text(prompt, optimisations),
      nullText: isGuided(guidance, optimisations) ? await conditioning.text(null, optimisations) : null,
      timesteps: await conditioning.timesteps(numSteps, optimisations),
    };
  }

  function onFrames(sample: Sample, frames: Uint8Array): void {
    const { rolloutId: id, candidate } = sample.spec;
    sample.framesAhead += manifest.shapes.block_frames;
    // Not by its id: it may have been cancelled in this forward, and the same id be in hand again.
    if (live.includes(sample)) emit({ type: "frames", id, candidate, frames });
  }

  function park({ samples, displaced }: Forward<Ready>): void {
    for (const { sample } of displaced) {
      if (!sample.parked) counters.samples_parked += 1;
      sample.parked = true;
    }
    for (const { sample } of samples) {
      if (sample.parked) counters.samples_resumed += 1;
      sample.parked = false;
    }
  }

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

  /** Something came in that may give the engine something to do. */
  function tellNews(): void {
    state.hasNews = true;
    state.wake?.();
  }

  /** Until there is news. Nothing can come in between the caller's look and this. */
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
      tellNews();
    },

    cancel(id) {
      if (!rollouts.delete(id)) return;
      live = live.filter((sample) => sample.spec.rolloutId !== id);
      emit({ type: "cancelled", id });
      tellNews(); // there is room for another
    },

    taken(id, candidate, frames) {
      const sample = live.find(({ spec }) => spec.rolloutId === id && spec.candidate === candidate);
      if (sample) sample.framesAhead -= frames;
      tellNews();
    },

    async run() {
      options.onBusy(true);
      while (!state.stopped) {
        state.hasNews = false;
        await admit();
        const ready = live.filter(({ framesAhead }) => framesAhead < FRAMES_AHEAD_MAX).map(asReady);
        const { forward, state: planned } = planForward(ready, rowLimits, state.plan);
        state.plan = planned;
        if (forward === null) {
          if (!state.hasNews) await sleep();
          continue;
        }
        park(forward);
        const samples = forward.samples.map(({ sample }) => sample);
        await runStage(forward.stage, samples);
        dismissFinished();
      }
    },

    stop() {
      state.stopped = true;
      tellNews();
    },
  };
}

function asReady(sample: Sample): Ready {
  const stage = stageOf(sample);
  const { lane, alone, graphs } = sample.spec;
  return { sample, lane, alone, stage, graphs: graphs[stage].join(" "), rows: rowsNeeded(sample) };
}
