/** One run of the engine over a rollout's inputs, which ends early when its attempt does. */
import type { Engine } from "./engine/engine.ts";
import type { EngineRequest } from "./engine/loop.ts";

export interface EngineRun {
  readonly request: EngineRequest;
  /** As the engine's: never rejects, and the engine does not run far ahead of it. */
  readonly onFrames: (candidate: number, frames: Uint8Array) => Promise<void>;
  readonly signal: AbortSignal;
  /** Rejects when nobody can use the frames any more. */
  readonly broken?: Promise<never>;
}

/**
 * Resolves with the engine's wall time, or null when the attempt was told to end; rejects with
 * EngineFault, EngineUnavailable or what `broken` did.
 */
export async function runEngine(
  engine: Engine,
  { request, onFrames, signal, broken }: EngineRun,
): Promise<number | null> {
  let over = false;
  const submission = engine.submit(request, async (candidate, frames) => {
    if (!over) await onFrames(candidate, frames);
  });
  const cancel = () => submission.cancel();
  if (signal.aborted) cancel();
  signal.addEventListener("abort", cancel);
  try {
    const result = await Promise.race([submission.done, ...(broken ? [broken] : [])]);
    return result.kind === "finished" ? result.engineWallMs : null;
  } finally {
    over = true;
    cancel(); // after a broken receiver nobody wants the rest; else there is nothing left to cancel
    signal.removeEventListener("abort", cancel);
  }
}
