/**
 * How many frames of a running rollout are done, as its worker says in passing. A gateway that came later, or lost a
 * signal, does not know; the next signal tells it.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Clock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Signals } from "#queue/signals.ts";

export interface ProgressBoard extends Service {
  /** Null while nothing was heard of it. */
  framesDone(id: RolloutId): number | null;
  /** Between the first and the last time that this gateway heard of it; null while it has not heard twice. */
  framesPerSecond(id: RolloutId): number | null;
}

interface Progress {
  readonly frames: number;
  readonly atMs: number;
  /** What was heard of this run first. */
  readonly first: Pick<Progress, "frames" | "atMs">;
}

/** More than run at once; one of which nothing was heard for longest is forgotten first. */
const ROLLOUTS_MAX = 10_000;

export async function startProgressBoard(
  signals: Signals,
  clock: Clock,
  rolloutsMax: number = ROLLOUTS_MAX,
): Promise<ProgressBoard> {
  /** In the order in which they were last heard of. */
  const progress = new Map<string, Progress>();
  const unsubscribe = await signals.subscribe(["progress", "finished"], (signal) => {
    if (signal.kind !== "progress" && signal.kind !== "finished") return;
    const before = progress.get(signal.rollout_id);
    progress.delete(signal.rollout_id);
    if (signal.kind === "finished") return;
    const now = { frames: signal.frames, atMs: clock.now() };
    // Fewer than before: it begins anew on another worker.
    const first = before && before.frames <= now.frames ? before.first : now;
    progress.set(signal.rollout_id, { ...now, first });
    if (progress.size <= rolloutsMax) return;
    const [oldest] = progress.keys();
    if (oldest !== undefined) progress.delete(oldest);
  });
  return {
    framesDone: (id) => progress.get(id)?.frames ?? null,
    framesPerSecond(id) {
      const heard = progress.get(id);
      if (!heard || heard.atMs <= heard.first.atMs || heard.frames === heard.first.frames) return null;
      return ((heard.frames - heard.first.frames) * 1000) / (heard.atMs - heard.first.atMs);
    },
    stop: unsubscribe,
  };
}
