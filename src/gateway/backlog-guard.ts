/**
 * Refuses what would make the backlog too long, before anything is written or paid: 429 where the customer's own is full, 503
 * where everybody's is, both with when a place is free again. Counts are kept for a second (longer where a long backlog takes
 * long to count) and what was let in meanwhile is added, so each gateway may let in as much more as comes to the others in
 * that time.
 */
import { ApiError } from "#contract/errors.ts";
import type { RolloutId } from "#contract/ids.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { type BacklogLimits, type BacklogPlace, countOwnBacklog } from "#rollouts/backlog-limits.ts";
import { countBacklog, firstInBacklog } from "#rollouts/dispatch.ts";
import { expectedStartS } from "#rollouts/expected-start.ts";
import { queuePosition } from "#rollouts/find.ts";

import type { ServerStatus } from "./status.ts";

export interface BacklogGuard {
  /** Counts one more in, or throws ApiError(too_many_waiting, no_capacity). */
  enter(place: BacklogPlace): Promise<void>;
}

/** What a caller is told at most: nobody plans by a guess of a longer time. */
const RETRY_AFTER_S_MAX = 3_600;
/** Where nobody knows how fast the workers are. */
const RETRY_AFTER_S_UNKNOWN = 60;
const COUNTED_FOR_MS = 1_000;
/** What takes long to count is kept for so many times as long: it keeps a twentieth of a connection busy at most. */
const KEPT_PER_COST = 20;

export function createBacklogGuard(parts: {
  readonly db: Database;
  readonly clock: Clock;
  readonly limits: BacklogLimits;
  readonly status: Pick<ServerStatus, "outlookOf">;
}): BacklogGuard {
  const { db, clock, limits, status } = parts;
  const own = createCounts(clock, (place) => countOwnBacklog(db, place, limits.per_customer));
  const all = createCounts(clock, ({ model, lane }) => countBacklog(db, model, lane, limits.all));

  /** A place is free when the next of them begins: of this customer's, or of anybody's. */
  async function retryAfter(place: BacklogPlace, next: { readonly id: RolloutId } | null): Promise<string> {
    const position = next === null ? 1 : await queuePosition(db, { ...next, model: place.model });
    const starts = expectedStartS({ position: position ?? 1, lane: place.lane }, await status.outlookOf(place.model));
    const seconds = Math.ceil(starts ?? RETRY_AFTER_S_UNKNOWN);
    return String(Math.min(RETRY_AFTER_S_MAX, Math.max(1, seconds)));
  }

  return {
    async enter(place) {
      const { model, lane, customer_id } = place;
      const counts = await Promise.all([own(`${model} ${lane} ${customer_id}`, place), all(`${model} ${lane}`, place)]);
      const [ofOwn, ofAll] = counts;
      if (ofOwn.waiting >= limits.per_customer) {
        const after = await retryAfter(place, await firstInBacklog(db, place));
        throw new ApiError(
          "too_many_waiting",
          `expected at most ${limits.per_customer} of your rollouts waiting in the ${lane} lane of ${model}: ` +
            `try again in ${after} s, when the next of them begins; nothing was charged`,
          { headers: { "Retry-After": after } },
        );
      }
      if (ofAll.waiting >= limits.all) {
        const after = await retryAfter(place, null);
        throw new ApiError(
          "no_capacity",
          `${limits.all} rollouts wait in the ${lane} lane of ${model}, and no more may: try again in ${after} s; ` +
            "nothing was charged",
          { headers: { "Retry-After": after } },
        );
      }
      for (const count of counts) count.waiting += 1;
    },
  };
}

interface Count {
  /** Counted, and let in since. */
  waiting: number;
}

interface Kept {
  readonly count: Promise<Count>;
  readonly fromMs: number;
  untilMs: number;
}

/** A clock that was set back must not keep an old count until it is where it was. */
const holds = ({ fromMs, untilMs }: Kept, nowMs: number): boolean => fromMs <= nowMs && nowMs < untilMs;

/** Counts by name, each kept for a second. */
function createCounts(clock: Clock, count: (place: BacklogPlace) => Promise<number>) {
  /** The oldest first. */
  const kept = new Map<string, Kept>();

  return (name: string, place: BacklogPlace): Promise<Count> => {
    const now = clock.now();
    // One that is kept for longer holds up those behind it, which count no more all the same.
    for (const [old, entry] of kept) {
      if (holds(entry, now)) break;
      kept.delete(old);
    }
    const known = kept.get(name);
    if (known && holds(known, now)) return known.count;
    kept.delete(name); // what is set anew is the youngest
    const counting = count(place).then((waiting) => ({ waiting }));
    const fresh: Kept = { count: counting, fromMs: now, untilMs: now + COUNTED_FOR_MS };
    kept.set(name, fresh);
    counting.then(
      () => {
        fresh.untilMs = Math.max(fresh.untilMs, now + (clock.now() - now) * KEPT_PER_COST);
      },
      () => {
        if (kept.get(name) === fresh) kept.delete(name);
      },
    );
    return counting;
  };
}
