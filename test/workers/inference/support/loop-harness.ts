/** The engine's loop on a scripted model, in this thread: requests in, events and recorded runs out. */
import type { Manifest, OptimisationName } from "#contract/manifest.ts";
import { createCounters } from "#workers/inference/engine/counters.ts";
import { createLoop, type EngineEvent, type EngineRequest } from "#workers/inference/engine/loop.ts";
import { specsOf } from "#workers/inference/engine/optimisations.ts";

import { createScriptedGraphs, runsOf, type ScriptedGraphs, type ScriptedOptions } from "./scripted-graphs.ts";
import { CHUNK, SIDE, tinyManifest } from "./tiny-bundle.ts";

export function request(id: string, options: Partial<EngineRequest> = {}): EngineRequest {
  return {
    id,
    frame: new Uint8Array(SIDE * SIDE * 3).fill(7),
    actions: [new Float32Array(2 * CHUNK)],
    seed: 1n,
    numSteps: 2,
    guidance: 0,
    prompt: "",
    lane: "realtime",
    spec: "served",
    alone: false,
    ...options,
  };
}

/** One candidate, every action of which has this value: it tells the sample's rows apart in the recorded runs. */
export const marked = (action: number, chunks = 2): Float32Array[] => [new Float32Array(chunks * CHUNK).fill(action)];

/** Candidates marked 1, 2, 3 … */
export const sequences = (count: number, chunks = 2): Float32Array[] =>
  Array.from({ length: count }, (_, i) => marked(i + 1, chunks)).flat();

export interface Harness {
  readonly graphs: ScriptedGraphs;
  readonly counters: ReturnType<typeof createCounters>;
  readonly events: EngineEvent[];
  readonly loop: Awaited<ReturnType<typeof createLoop>>;
  /** What the loop said of itself. */
  readonly busy: boolean[];
  /** Runs until all of these requests have ended. */
  finish(...ids: string[]): Promise<void>;
}

export interface HarnessOptions extends ScriptedOptions {
  readonly onEvent?: (event: EngineEvent) => void;
  readonly takesFrames?: boolean;
  readonly optimisations?: readonly OptimisationName[];
}

export async function createHarness(options: HarnessOptions = {}): Promise<Harness> {
  const { onEvent, takesFrames = true, manifest = tinyManifest() } = options;
  const graphs = createScriptedGraphs(options);
  const counters = createCounters();
  const events: EngineEvent[] = [];
  const busy: boolean[] = [];
  const state = { onEnd: null as (() => void) | null };
  const emit = (event: EngineEvent) => {
    events.push(event);
    onEvent?.(event);
    if (event.type !== "frames") state.onEnd?.();
    else if (takesFrames) loop.taken(event.id, event.candidate, manifest.shapes.block_frames);
  };
  const loop = await createLoop({
    manifest,
    graphs,
    rowLimits: {
      rowsMax: manifest.engine.max_batch_samples,
      rowsWorth: manifest.engine.max_batch_samples,
      fillTo: {},
    },
    specs: specsOf(withGraphs(manifest, options), options.optimisations),
    counters,
    emit,
    onRun: () => undefined,
    onBusy: (value) => void busy.push(value),
    now: () => 0,
  });
  return {
    graphs,
    counters,
    events,
    loop,
    busy,
    async finish(...ids) {
      const stopAtEnd = () => {
        const ended = new Set(events.filter(({ type }) => type !== "frames").map(({ id }) => id));
        if (ids.every((id) => ended.has(id))) loop.stop();
      };
      state.onEnd = stopAtEnd;
      stopAtEnd();
      await loop.run();
    },
  };
}

/** The manifest of a bundle with the optional graphs that the scripted one has. */
function withGraphs(manifest: Manifest, { unfused }: ScriptedOptions): Manifest {
  const { denoiser_body: body } = manifest.graphs;
  return unfused ? { ...manifest, graphs: { ...manifest.graphs, denoiser_body_unfused: body } } : manifest;
}

/** The first pixel of each block's frames. */
export const framesOf = ({ events }: Pick<Harness, "events">, id: string, candidate = 0): number[] =>
  events.flatMap((event) =>
    event.type === "frames" && event.id === id && event.candidate === candidate ? [event.frames[0] ?? Number.NaN] : [],
  );

/** The latents, before they become pixels, of the sample with this mark. */
export const latentsOf = ({ graphs }: Pick<Harness, "graphs">, mark: number): number[] =>
  runsOf(graphs, "decoder").flatMap(({ action, latent }) => latent.filter((_, row) => action[row] === mark));
