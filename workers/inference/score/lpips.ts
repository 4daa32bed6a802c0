/**
 * LPIPS by its ONNX graph (models/lpips/): pretrained features, the published linear weights, the normalisation inside.
 * The session is opened at first use, in the thread that asks, and blocks that thread while it runs: in a process whose
 * engine thread has sessions, ask there. Between runs that thread's other work goes on: each starts in a turn of its own.
 */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import * as ort from "onnxruntime-node";
import { Type } from "typebox";
import { Compile } from "typebox/compile";

import { checkVideos, framesOf, type VideoShape } from "./video-shape.ts";

/**
 * One run takes no more frames than this many pixels allow, and at least one frame: it bounds how long the thread is blocked
 * and the memory (a few hundred bytes a pixel). Longer runs save a few per cent a frame (bench/score.ts).
 */
const PIXELS_PER_RUN = 4 * 96 * 96;

/** models/lpips/lpips-<net>.json, as models/lpips/build.py writes it. */
const description = Compile(
  Type.Object({
    file: Type.String({ minLength: 1 }),
    sha256: Type.String({ pattern: "^[0-9a-f]{64}$" }),
    side_min: Type.Integer({ minimum: 1 }),
  }),
);

/** No graph, or not the one that its description names. */
export class LpipsModelError extends Error {
  override readonly name = "LpipsModelError";
}

export interface LpipsOptions {
  /** The graph's description: `models/lpips/lpips-alex.json`. */
  readonly model: string;
  /** Execution providers in order of preference, as the engine's. */
  readonly providers: readonly string[];
}

export interface Lpips {
  /**
   * The distance of each pair of frames: 0 for identical ones, about 1 for unrelated ones. Throws VideoShapeError for
   * frames smaller than the weights were fitted on (64 pixels a side), LpipsModelError, or the signal's reason.
   */
  distances(
    reference: Uint8Array,
    candidate: Uint8Array,
    shape: VideoShape,
    signal?: AbortSignal,
  ): Promise<Float32Array>;
  /** Gives the session back, after what is being asked; asking again opens it again. */
  release(): Promise<void>;
}

interface Opened {
  readonly session: ort.InferenceSession;
  readonly sideMin: number;
}

export function createLpips(options: LpipsOptions): Lpips {
  let opening: Promise<Opened> | null = null;
  const asking = new Set<Promise<unknown>>();

  function opened(): Promise<Opened> {
    opening ??= open(options).catch((error: unknown) => {
      opening = null; // whoever asks next tries again
      throw error;
    });
    return opening;
  }

  async function distancesOf(...[reference, candidate, shape, signal]: Parameters<Lpips["distances"]>) {
    const { session, sideMin } = await opened();
    checkVideos(reference, candidate, shape, sideMin);
    const { frames, height, width } = shape;
    const framesPerRun = Math.max(1, Math.floor(PIXELS_PER_RUN / (height * width)));
    const distances = new Float32Array(frames);
    for (let start = 0; start < frames; start += framesPerRun) {
      signal?.throwIfAborted();
      const end = Math.min(frames, start + framesPerRun);
      const batch = (video: Uint8Array) =>
        new ort.Tensor("uint8", framesOf(video, shape, start, end), [end - start, height, width, 3]);
      const { distance } = await session.run({ reference: batch(reference), candidate: batch(candidate) });
      distances.set(floatsOf(distance, end - start), start);
    }
    return distances;
  }

  return {
    distances(...asked) {
      const answer = distancesOf(...asked);
      asking.add(answer);
      const answered = () => asking.delete(answer);
      void answer.then(answered, answered); // the caller has the rejection
      return answer;
    },

    async release() {
      await Promise.allSettled(asking);
      const open = opening;
      opening = null;
      // One that could not be opened was told to who asked, and holds nothing.
      const held = await open?.catch(() => null);
      await held?.session.release();
    },
  };
}

async function open({ model, providers }: LpipsOptions): Promise<Opened> {
  const { file, sha256, side_min } = await describe(model);
  const path = join(dirname(model), file);
  const bytes = await readFile(path).catch((error: unknown) => {
    throw new LpipsModelError(`cannot read ${path}, which ${model} names`, { cause: error });
  });
  const found = createHash("sha256").update(bytes).digest("hex");
  if (found !== sha256) throw new LpipsModelError(`${path} has SHA-256 ${found}, ${model} says ${sha256}`);
  try {
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: [...providers],
      executionMode: "sequential",
      // As the engine's graphs: the other cores are the main thread's and ffmpeg's.
      intraOpNumThreads: 1,
      interOpNumThreads: 1,
      enableCpuMemArena: false, // it keeps the largest run's memory for ever, and is no faster
      logSeverityLevel: 3,
    });
    return { session, sideMin: side_min };
  } catch (error) {
    throw new LpipsModelError(`${path} cannot be loaded on ${providers.join(", ")}`, { cause: error });
  }
}

async function describe(model: string) {
  let found: unknown;
  try {
    found = JSON.parse(await readFile(model, "utf8"));
  } catch (error) {
    throw new LpipsModelError(`cannot read ${model}, expected what models/lpips/build.py writes`, { cause: error });
  }
  if (!description.Check(found)) {
    throw new LpipsModelError(`${model} describes no LPIPS graph: expected file, sha256 and side_min`);
  }
  return found;
}

function floatsOf(tensor: ort.Tensor | undefined, length: number): Float32Array {
  const data = tensor?.data;
  if (data instanceof Float32Array && data.length === length) return data;
  throw new LpipsModelError(`the LPIPS graph gave no float32 distance for each of ${length} frames`);
}
