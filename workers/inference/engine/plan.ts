/**
 * Decides the next forward, from plain data: what is ready, and what was decided before.
 *
 * - Realtime leads. Its oldest sample that may share decides, with one twist: short stages go first. A sample that has
 *   to be encoded, decoded or (where TeaCache may skip) only looked at is brought to its expensive forward before the
 *   others take theirs, so that this one is shared by as many as possible, whatever step, seed, chunk or prompt each
 *   is at. Bulk samples take the rows that are left, as far as these cost realtime little (`fillTo`: on a processor
 *   whose time grows with every row they do not); without a realtime sample they lead themselves.
 * - Bulk is not starved: once `BULK_EVERY` forwards that realtime led went without the oldest bulk sample, the next
 *   forward is that sample's, and realtime takes the rows that are left. So a realtime sample waits for at most one
 *   forward on behalf of bulk, other bulk samples come along only as far as they cost little, and the oldest one takes part
 *   in every ninth forward at least.
 * - A forward of the expensive stages has no more rows than pay (`rowsWorth`): where twice the rows take twice the time, as
 *   on a processor, and on a device once it is full, sharing a forward would make everybody wait for everybody and
 *   finish nobody earlier. The oldest goes first instead.
 * - Nobody starves within a lane: short stages come a fixed number of times between two expensive ones, the number of
 *   live samples is limited, and within a stage the oldest has its place first.
 * - An alone sample waits until it is the oldest of its lane and then has its forwards for itself.
 */
import type { Lane } from "#contract/rollout.ts";

/** `denoise` is head, body and tail in one; `head` and `body` (with the tail) are for engines whose TeaCache may skip. */
const STAGES_SHORTEST_FIRST = ["encode", "decode", "head", "body", "denoise"] as const;
export type Stage = (typeof STAGES_SHORTEST_FIRST)[number];

/** Encoding and decoding, once a block, and `head` are cheap beside these. */
const EXPENSIVE_STAGES: ReadonlySet<Stage> = new Set(["body", "denoise"]);

/** Forwards led by realtime after which the oldest bulk sample has its turn. */
export const BULK_EVERY = 8;

/** What the plan has to know of a live sample. */
export interface Plannable {
  readonly lane: Lane;
  readonly stage: Stage;
  /** Samples at one stage share a forward when they take the same graphs there. */
  readonly graphs: string;
  /** Rows it takes in a forward of its stage: 2 where guidance needs the unconditional pass as well. */
  readonly rows: number;
  /** An engine fault has hit it before: it shares a forward with nobody. */
  readonly alone: boolean;
}

/** Handed from one decision to the next. */
export interface PlanState {
  /** Forwards led by realtime since the oldest bulk sample took part in one. */
  readonly bulkPassedOver: number;
}
export const FIRST_PLAN: PlanState = { bulkPassedOver: 0 };

export interface Forward<S> {
  readonly stage: Stage;
  readonly samples: readonly S[];
  /** Bulk samples that could have shared it, but realtime ones have the rows. */
  readonly displaced: readonly S[];
}

export interface Plan<S> {
  /** Null when there is nothing to do. */
  readonly forward: Forward<S> | null;
  readonly state: PlanState;
}

/** What is timed by itself when a bundle is warmed: a denoising step is, as a whole, what head and body are parts of. */
export type TimedStage = "encode" | "decode" | "denoise";
const timedAs = (stage: Stage): TimedStage => (stage === "encode" || stage === "decode" ? stage : "denoise");

export interface RowLimits {
  /** Rows of a forward. */
  readonly rowsMax: number;
  /** Rows of a denoising forward that bring more in the same time than fewer would; at most `rowsMax`. */
  readonly rowsWorth: number;
  /**
   * `fillTo[stage][r]`: rows that a forward of r rows may have in all once bulk ones are added, while realtime samples are
   * there; as many as fit where nothing is said.
   */
  readonly fillTo: Readonly<Partial<Record<TimedStage, readonly number[]>>>;
}

export interface RowBudget {
  /** Takes the rows and says true, or leaves the budget as it is and says false. */
  tryAdd(rows: number): boolean;
  /** Lowers the maximum, for what is added from now on. */
  limitTo(rowsMax: number): void;
  readonly used: number;
}

/** A forward holds at most `rowsMax` rows, but always one sample, whose passes then go one after the other (stages.ts). */
export function createRowBudget(rowsMax: number): RowBudget {
  let used = 0;
  let max = rowsMax;
  return {
    tryAdd(rows) {
      if (used > 0 && used + rows > max) return false;
      used += rows;
      return true;
    },
    limitTo(rowsMax) {
      max = Math.min(max, rowsMax);
    },
    get used() {
      return used;
    },
  };
}

/** `ready` in order of arrival. */
export function planForward<S extends Plannable>(
  ready: readonly S[],
  { rowsMax, rowsWorth, fillTo }: RowLimits,
  state: PlanState,
): Plan<S> {
  const realtime = ready.filter(({ lane }) => lane === "realtime");
  const bulk = ready.filter(({ lane }) => lane === "bulk");
  const [oldestBulk] = bulk;
  const isBulksTurn = oldestBulk !== undefined && realtime.length > 0 && state.bulkPassedOver >= BULK_EVERY;
  const leader = isBulksTurn ? oldestBulk : leaderOf(realtime.length > 0 ? realtime : bulk);
  if (leader === null) return { forward: null, state };

  const isLedByRealtime = leader.lane === "realtime";
  const budget = createRowBudget(EXPENSIVE_STAGES.has(leader.stage) ? rowsWorth : rowsMax);
  const takeFrom = (lane: readonly S[]) =>
    lane.filter((sample) => sharesWith(leader, sample) && budget.tryAdd(sample.rows));
  const samples = takeFrom(isLedByRealtime ? realtime : [leader, ...realtime]);
  // In bulk's own turn as well: realtime waits for this forward.
  if (realtime.length > 0) budget.limitTo(fillTo[timedAs(leader.stage)]?.[budget.used] ?? rowsMax);
  samples.push(...takeFrom(bulk.filter((sample) => sample !== leader)));
  const isTaken = new Set(samples);
  const displaced = bulk.filter((sample) => isLedByRealtime && sharesWith(leader, sample) && !isTaken.has(sample));
  return {
    forward: { stage: leader.stage, samples, displaced },
    state: { bulkPassedOver: passedOver(state, oldestBulk === undefined || isTaken.has(oldestBulk), isLedByRealtime) },
  };
}

/** Who decides stage and graphs: the oldest if it is alone, else the oldest sharing one at the shortest stage. */
function leaderOf<S extends Plannable>(lane: readonly S[]): S | null {
  const [oldest] = lane;
  if (!oldest || oldest.alone) return oldest ?? null;
  for (const stage of STAGES_SHORTEST_FIRST) {
    const first = lane.find((sample) => sample.stage === stage && !sample.alone);
    if (first) return first;
  }
  return null;
}

function sharesWith(leader: Plannable, sample: Plannable): boolean {
  if (sample === leader) return true;
  return !leader.alone && !sample.alone && sample.stage === leader.stage && sample.graphs === leader.graphs;
}

/** A forward that bulk led without its oldest sample brought others to where that one stands: it does not count. */
function passedOver({ bulkPassedOver }: PlanState, oldestTookPart: boolean, isLedByRealtime: boolean): number {
  if (oldestTookPart) return 0;
  return isLedByRealtime ? bulkPassedOver + 1 : bulkPassedOver;
}
