/**
 * Why a pool has the size that it has: what scheduler/scaling/policy.ts decides by and stores with each look, and what an
 * operator reads of it, in the CLI, on the dashboard and in the log alike.
 */
/** What a start was weighed by. */
export interface Weighed {
  readonly waiting_rollouts: number;
  /** Work present, in seconds of one worker. */
  readonly work_s: number;
  /** Workers that are ready or starting. */
  readonly workers: number;
  /** Workers that the arriving work keeps busy. */
  readonly sustained_workers: number;
  /** Until the backlog is gone with these workers; null: it only grows. */
  readonly wall_s: number | null;
  /** A start pays from this wall on: a cold start, and as much work as it has to find. */
  readonly break_even_s: number;
}

export type Reason =
  /** Nothing to do and nobody there. */
  | { readonly kind: "no_work" }
  /** Work, and no worker at all. */
  | ({ readonly kind: "from_zero"; readonly start: number } & Weighed)
  /** Jobs that a worker took that is gone; a worker has to be there for the queue to hand them out again. */
  | { readonly kind: "orphaned_work"; readonly active_rollouts: number }
  /** The backlog outlasts a cold start by what pays for it. */
  | ({ readonly kind: "scale_out"; readonly start: number } & Weighed)
  /** Work waits, and a further worker would come too late to pay for itself. */
  | ({ readonly kind: "wait" } & Weighed)
  /** Nothing waits, and all are needed. */
  | { readonly kind: "busy"; readonly workers: number }
  /** More than are needed now, and they were needed within the window. */
  | { readonly kind: "scaledown_window"; readonly peak: number; readonly unneeded_s: number; readonly window_s: number }
  /** Fewer were needed all through the window. */
  | { readonly kind: "scale_in"; readonly workers: number; readonly peak: number; readonly window_s: number }
  /** Work alone would need fewer. */
  | { readonly kind: "minimum" | "always_warm"; readonly workers: number; readonly needed: number }
  /** Work alone would need more. */
  | { readonly kind: "maximum"; readonly maximum: number; readonly needed: number }
  /** Somebody else runs its workers. */
  | { readonly kind: "unmanaged" };

/** One sentence, without its full stop. */
export function reasonText(reason: Reason): string {
  switch (reason.kind) {
    case "no_work":
      return "no work, so no worker";
    case "from_zero":
      return `${waits(reason)}, and no worker is there: starting ${reason.start}`;
    case "orphaned_work":
      return `${counted(reason.active_rollouts, "rollout")} of workers that are gone: one starts to take over`;
    case "scale_out": {
      const longer =
        reason.wall_s === null
          ? ""
          : `, longer than the ${timeText(reason.break_even_s)} from which on another start pays`;
      return `${waits(reason)}: ${wallText(reason)}${longer}: starting ${reason.start}`;
    }
    case "wait": {
      const more =
        reason.wall_s === null
          ? "no further start would pay for itself now"
          : `another start pays from ${timeText(reason.break_even_s)} on`;
      return `${waits(reason)}: ${wallText(reason)}, and ${more}`;
    }
    case "busy":
      return `nothing waits, and ${reason.workers === 1 ? "the worker is" : `all ${reason.workers} workers are`} needed`;
    case "scaledown_window":
      return `${counted(reason.peak, "worker")} needed ${timeText(reason.unneeded_s)} ago: kept until that is ${timeText(reason.window_s)} ago`;
    case "scale_in":
      return `at most ${counted(reason.peak, "worker")} needed in the last ${timeText(reason.window_s)}: ${reason.workers - reason.peak} of ${reason.workers} may go`;
    case "minimum":
      return `the minimum of ${reason.workers} (WORKERS_MIN, and 1 when serve has just started) holds; the work alone needs ${reason.needed}`;
    case "always_warm":
      return `always warm: ${counted(reason.workers, "worker")} kept; the work alone needs ${reason.needed}`;
    case "maximum":
      return `the maximum of ${reason.maximum} (WORKERS) holds; the work alone would need ${reason.needed}`;
    case "unmanaged":
      return "somebody else runs its workers (FLEET=none); their numbers are told from what they do";
    default: {
      // A row that another version of the scheduler wrote.
      const { kind }: { readonly kind: string } = reason;
      return kind.replaceAll("_", " ");
    }
  }
}

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;

/** Whole seconds of what is compared with a cold start; longer times as people say them. */
function timeText(s: number): string {
  if (s < 600) return `${Math.round(s)} s`;
  return s < 7_200 ? `${Math.round(s / 60)} min` : `${(s / 3_600).toFixed(1)} h`;
}

const waits = ({ waiting_rollouts, work_s }: Weighed): string =>
  `${counted(waiting_rollouts, "rollout")} ${waiting_rollouts === 1 ? "waits" : "wait"}, ${timeText(work_s)} of work in all`;

const wallText = ({ wall_s, workers }: Weighed): string =>
  wall_s === null
    ? `${counted(workers, "worker")} would never be done with what keeps coming`
    : `${counted(workers, "worker")} would be done in ${timeText(wall_s)}`;
