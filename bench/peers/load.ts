/**
 * The one load generator for all systems: a closed loop to find what a system can do at most, and an open loop whose
 * arrivals do not wait for answers, as customers don't.
 */
import { setTimeout as delay } from "node:timers/promises";

import { seededRandom } from "#test/chaos/random.ts";

/** Sends the request of this number and resolves when its answer is complete; rejects when it was refused or failed. */
export type Send = (number: number) => Promise<void>;

export interface OpenLoop {
  /** From the time a request was due to its answer's last byte, sorted; those that failed are not among them. */
  readonly latenciesMs: readonly number[];
  /** Answers a second, from the first arrival to the last answer. */
  readonly donePerS: number;
  readonly failed: number;
}

/** Times of arrival in milliseconds, of a Poisson process; `least` at least. The same seed gives the same. */
export function poissonArrivals(perS: number, seconds: number, seed: number, least = 1): number[] {
  const random = seededRandom(seed);
  const arrivals: number[] = [];
  let at = 0;
  while (arrivals.length < least || at < seconds * 1_000) {
    arrivals.push(at);
    at += (-Math.log(1 - random.next()) / perS) * 1_000;
  }
  return arrivals;
}

export async function openLoop(send: Send, arrivalsMs: readonly number[]): Promise<OpenLoop> {
  const latenciesMs: number[] = [];
  let failed = 0;
  const startedAt = performance.now();
  const arrive = async (dueMs: number, number: number): Promise<void> => {
    await delay(Math.max(0, startedAt + dueMs - performance.now()));
    try {
      await send(number);
      latenciesMs.push(performance.now() - startedAt - dueMs);
    } catch (error) {
      failed += 1;
      sayOnce(error);
    }
  };
  await Promise.all(arrivalsMs.map(arrive));
  const seconds = (performance.now() - startedAt) / 1_000;
  return { latenciesMs: latenciesMs.toSorted((a, b) => a - b), donePerS: latenciesMs.length / seconds, failed };
}

/**
 * Answers a second while `callers` ask without pause, for `seconds` and at least `answersMin` answers. Rejects when a
 * request fails: at saturation none may.
 */
export async function closedLoop(send: Send, callers: number, seconds: number, answersMin: number): Promise<number> {
  const answeredAtMs: number[] = [];
  const endAt = performance.now() + seconds * 1_000;
  let number = 0;
  await Promise.all(
    Array.from({ length: callers }, async () => {
      while (performance.now() < endAt || answeredAtMs.length < answersMin) {
        await send(number++);
        answeredAtMs.push(performance.now());
      }
    }),
  );
  // Answers after the end come from callers that stop: the system is no longer full.
  const within = answeredAtMs.filter((at) => at <= Math.max(endAt, answeredAtMs[answersMin - 1] ?? endAt));
  return slopePerS(within);
}

/**
 * The slope of the line through (time, answers so far) by least squares. Answers of a batch come together, and so a
 * count over a window depends on where the window cuts a batch; this hardly does.
 */
export function slopePerS(timesMs: readonly number[]): number {
  const mean = timesMs.reduce((sum, at) => sum + at, 0) / timesMs.length;
  const middle = (timesMs.length - 1) / 2;
  let [products, squares] = [0, 0];
  for (const [count, at] of timesMs.entries()) {
    products += (at - mean) * (count - middle);
    squares += (at - mean) ** 2;
  }
  if (!(squares > 0)) throw new Error(`${timesMs.length} answers are too few to tell a rate: measure for longer`);
  return (products / squares) * 1_000;
}

/** Nearest rank; NaN of nothing. */
export function percentile(sorted: readonly number[], percent: number): number {
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

const said = new Set<string>();
/** Failures are counted in the results; what they were belongs on the terminal, once each. */
function sayOnce(error: unknown): void {
  const text = String(error);
  if (said.has(text)) return;
  said.add(text);
  process.stderr.write(`  a request failed: ${text}\n`);
}
