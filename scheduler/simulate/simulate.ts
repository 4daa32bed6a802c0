/**
 * One pool under a simulated clock: requests of a trace, workers that start, work, idle and go, and every size decided by
 * the policy that decides it in production (../scaling/policy.ts, drain.ts), asked as often as the scaler asks.
 *
 * The model: a worker serves one rollout at a time, `frames × seconds_per_frame` long, so K candidates take K times as long
 * as one; that is the throughput of a bundle, however it batches. A start takes exactly its cold start, and rent is paid
 * from the start to the end, idle or not. Nothing fails. Idle workers take work latest first, which the policy does
 * not see: it counts workers.
 */
import { chooseDrains } from "../scaling/drain.ts";
import { observe, type Observation, type PoolHistory } from "../scaling/history.ts";
import { decide, type ScalingOptions } from "../scaling/policy.ts";
import { createHeap } from "./heap.ts";
import { createLevels, type Rental } from "./levels.ts";
import { createLine } from "./line.ts";
import { createTimeline, type Timeline } from "./timeline.ts";
import type { Trace } from "./trace.ts";

export interface SimulateOptions {
  readonly trace: Trace;
  /** `samples_per_worker` is 1 here. */
  readonly scaling: ScalingOptions;
  readonly seconds_per_frame: number;
  /** Pause between two looks of the scaler; from zero it is woken by the request itself. */
  readonly look_every_s: number;
  /** Workers that are kept whatever comes are paid for until then at least. */
  readonly horizon_s: number;
  /** Now and then, with the number of requests that have come in. */
  readonly onProgress?: (arrived: number) => void;
}

export interface Run extends Rental {
  /** Seconds from arrival to a worker, by request. */
  readonly waits_s: Float64Array;
  /** The cheapest rental under which every request begins and ends as here; see levels.ts. */
  readonly optimum: Rental;
  readonly timeline: Timeline;
}

const PROGRESS_EVERY = 16_384;

export function simulate(options: SimulateOptions): Run {
  const { trace, scaling, seconds_per_frame, look_every_s, horizon_s, onProgress } = options;
  const line = createLine(trace);
  const doneAt = createHeap();
  const levels = createLevels(scaling.cold_start_s);
  const timeline = createTimeline(Math.max(horizon_s, trace.at_s.at(-1) ?? 0));
  const waits_s = new Float64Array(trace.length);
  const floor = Math.min(scaling.maximum, Math.max(scaling.minimum, scaling.always_warm?.workers ?? 0));
  const rent = { starting: 0, busy: 0, idle: 0 };
  /** Since when each idle worker has been idle, the longest first. */
  let idleSince: number[] = [];
  /** When each start under way began, the oldest first. */
  let startedAt: number[] = [];
  let history: PoolHistory | null = null;
  let [now, arrived, starts, peak] = [0, 0, 0, 0];
  /** Seconds of work that came in, that wait, and the sum of the moments at which those who are busy will be done. */
  let [arrivedWork, waitingWork, doneSum] = [0, 0, 0];

  const workOf = (request: number): number => (trace.frames[request] ?? 0) * seconds_per_frame;
  const workers = (): number => doneAt.size() + idleSince.length + startedAt.length;

  function advance(to: number): void {
    const passed = to - now;
    rent.starting += startedAt.length * passed;
    rent.busy += doneAt.size() * passed;
    rent.idle += idleSince.length * passed;
    now = to;
  }

  /** A worker without work takes the next request. */
  function serve(): boolean {
    const request = line.take();
    if (request === null) return false;
    const work = workOf(request);
    waits_s[request] = now - (trace.at_s[request] ?? now);
    waitingWork -= work;
    doneSum += now + work;
    doneAt.push(now + work);
    levels.rise(now);
    return true;
  }

  function look(): void {
    const rolloutsActive = doneAt.size();
    const observation: Observation = {
      ready: rolloutsActive + idleSince.length,
      starting_since_ms: startedAt.map((at) => at * 1000),
      waiting: { rollouts: line.size(), samples: line.size(), work_s: Math.max(0, waitingWork) },
      active: {
        rollouts: rolloutsActive,
        samples: rolloutsActive,
        work_s: Math.max(0, doneSum - rolloutsActive * now),
      },
      arrived_work_s: arrivedWork,
    };
    history = observe(history, observation, now * 1000, scaling);
    const { desired } = decide(history, now * 1000, scaling);
    const present = workers();
    for (let n = present; n < desired; n += 1) startedAt.push(now);
    starts += Math.max(0, desired - present);
    if (desired < present) drain(present - desired);
    peak = Math.max(peak, workers());
    timeline.note(now, workers(), rolloutsActive, line.size());
  }

  function drain(surplus: number): void {
    const idle = idleSince.map((since, index) => ({ name: String(index), jobs: 0, idle_since_ms: since * 1000 }));
    const gone = new Set(chooseDrains(idle, surplus).map(Number));
    if (gone.size > 0) idleSince = idleSince.filter((_since, index) => !gone.has(index));
  }

  look();
  let nextLook = look_every_s;
  const isOver = (): boolean =>
    arrived === trace.length && doneAt.size() === 0 && line.size() === 0 && workers() <= floor && now >= horizonOf();
  const horizonOf = (): number => (floor > 0 ? horizon_s : 0);

  while (!isOver()) {
    const arrival = trace.at_s[arrived] ?? Number.POSITIVE_INFINITY;
    const done = doneAt.first();
    const ready = (startedAt[0] ?? Number.POSITIVE_INFINITY) + scaling.cold_start_s;
    const isAwake = workers() > 0 || line.size() > 0;
    const looking = isAwake ? nextLook : Number.POSITIVE_INFINITY;
    const next = Math.min(arrival, done, ready, looking);
    advance(next);
    if (done === next) {
      doneSum -= done;
      doneAt.pop();
      levels.fall(now);
      if (!serve()) idleSince.push(now);
    } else if (ready === next) {
      startedAt = startedAt.slice(1);
      if (!serve()) idleSince.push(now);
    } else if (arrival === next) {
      line.push(arrived);
      arrivedWork += workOf(arrived);
      waitingWork += workOf(arrived);
      arrived += 1;
      if (arrived % PROGRESS_EVERY === 0) onProgress?.(arrived);
      if (idleSince.length > 0) {
        idleSince.pop();
        serve();
      } else if (!isAwake) {
        nextLook = now; // woken, once all that arrive in this moment are there
      }
    } else {
      look();
      nextLook = now + look_every_s;
    }
  }
  onProgress?.(arrived);
  return { rent_s: rent, starts, peak_workers: peak, waits_s, optimum: levels.cheapest(), timeline };
}
