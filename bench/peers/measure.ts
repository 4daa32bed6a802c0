/** What is done with a running system: warmed, driven to saturation, offered loads; and how a peer is tuned by it. */
import { closedLoop, openLoop, percentile, poissonArrivals, type Send } from "./load.ts";
import type { Running, Tuning } from "./systems.ts";

/** The load at which a waiting time is judged. */
const TUNED_AT = 0.7;
/** A waiting time may cost so much of the best throughput, if it answers earlier. */
const THROUGHPUT_TOLERANCE = 0.03;

export interface Pace {
  /** Seconds of a measurement. */
  readonly windowS: number;
  /** Who ask without pause at saturation. */
  readonly callers: number;
  /** Answers at saturation at least, where the window is short for so many. */
  readonly answersMin: number;
  /** Requests of an offered load at least, where the window is short for so many. */
  readonly arrivalsMin: number;
  /** Processes of a system that have to be warm. */
  readonly processes: number;
}

export interface PeerTuning {
  readonly name: string;
  /** The best of those tried. */
  readonly tuning: Tuning;
  readonly saturation_per_s: number;
  readonly tried: readonly { readonly tuning: Tuning; readonly saturation_per_s: number; readonly p99_ms: number }[];
}

export interface LoadFigures {
  readonly done_per_s: number;
  readonly p50_ms: number;
  readonly p99_ms: number;
  readonly answered: number;
  readonly failed: number;
}

/** Of one system, a figure a round. */
export interface Measured {
  readonly saturations_per_s: readonly number[];
  /** In the order of the offered loads; none for the bare loop. */
  readonly loads: readonly (readonly LoadFigures[])[];
}

export const progress = (line: string): void => void process.stderr.write(`  ${line}\n`);

/**
 * First the batch size with the most throughput, then, with it, the wait: it hardly matters at saturation, where a
 * batch is there. Of all that come near the best throughput, the one with the lowest P99.
 */
export async function tune(
  name: string,
  batches: readonly number[],
  [firstWaitMs = null, ...otherWaitsMs]: readonly (number | null)[],
  { windowS, callers, answersMin, arrivalsMin, processes }: Pace,
  start: (tuning: Tuning) => Promise<Running>,
): Promise<PeerTuning> {
  const tried: PeerTuning["tried"][number][] = [];
  const measure = async (tuning: Tuning): Promise<void> => {
    const running = await start(tuning);
    try {
      const send = await warmed(running, processes);
      const saturation_per_s = await closedLoop(send, callers, windowS / 3, answersMin);
      const { latenciesMs } = await openLoop(
        send,
        poissonArrivals(TUNED_AT * saturation_per_s, windowS / 2, 1, arrivalsMin / 2),
      );
      const p99_ms = percentile(latenciesMs, 99);
      tried.push({ tuning, saturation_per_s, p99_ms });
      const how = `batch ${tuning.batch}, wait ${tuning.waitMs ?? "its own"}`;
      progress(`${name}, ${how}: ${saturation_per_s.toFixed(3)}/s, P99 ${p99_ms.toFixed(0)} ms`);
    } finally {
      await running.stop();
    }
  };
  for (const batch of batches) await measure({ batch, waitMs: firstWaitMs });
  const [largest] = tried.toSorted((a, b) => b.saturation_per_s - a.saturation_per_s);
  if (largest && largest.tuning.batch > 1) {
    for (const waitMs of otherWaitsMs) await measure({ batch: largest.tuning.batch, waitMs });
  }
  const most = Math.max(...tried.map((one) => one.saturation_per_s));
  const [best] = tried
    .filter((one) => one.saturation_per_s >= (1 - THROUGHPUT_TOLERANCE) * most)
    .toSorted((a, b) => a.p99_ms - b.p99_ms);
  if (!best) throw new Error(`${name}: nothing was tried`);
  return { name, tuning: best.tuning, saturation_per_s: best.saturation_per_s, tried };
}

/** One turn of a system: saturation, then each offered load. Systems of the same `round` get the same arrivals. */
export async function measureTurn(
  name: string,
  running: Running,
  { windowS, callers, answersMin, arrivalsMin, processes }: Pace,
  offeredPerS: readonly number[],
  round: number,
): Promise<Measured> {
  const send = await warmed(running, processes);
  const saturation = await closedLoop(send, callers, windowS, answersMin);
  progress(`${name}: ${saturation.toFixed(3)}/s at saturation`);
  const loads: Measured["loads"][number][] = [];
  for (const [i, perS] of offeredPerS.entries()) {
    const arrivals = poissonArrivals(perS, windowS, round * offeredPerS.length + i + 1, arrivalsMin);
    const { latenciesMs, donePerS, failed } = await openLoop(send, arrivals);
    const [p50_ms, p99_ms] = [percentile(latenciesMs, 50), percentile(latenciesMs, 99)];
    loads.push([{ done_per_s: donePerS, p50_ms, p99_ms, answered: latenciesMs.length, failed }]);
    progress(`${name}: ${perS.toFixed(3)}/s offered, ${donePerS.toFixed(3)}/s done, P99 ${p99_ms.toFixed(0)} ms`);
  }
  return { saturations_per_s: [saturation], loads };
}

/** Rollouts a second at saturation, of a system that was just started. */
export async function saturationOf(
  running: Running,
  { windowS, callers, answersMin, processes }: Pace,
): Promise<number> {
  return closedLoop(await warmed(running, processes), callers, windowS / 3, answersMin);
}

/** What sends it requests, when it is as fast as it will be. They count on, so that no seed comes twice. */
export async function warmed(running: Running, processes: number): Promise<Send> {
  let number = 1;
  const send = async (): Promise<void> => {
    await running.dream(number++);
  };
  let left = running.warmRequests * processes;
  const warm = async (): Promise<void> => {
    while (left-- > 0) await send();
  };
  await Promise.all(Array.from({ length: 2 * processes }, warm));
  return send;
}
