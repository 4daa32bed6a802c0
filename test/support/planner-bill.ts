/** What a planner pays that looks at several futures before each decision (the example of the pricing page). */
import { type Mils, mils } from "#contract/mils.ts";

export interface Planner {
  /** Candidates of a decision. */
  readonly k: number;
  /** Of each candidate: actions + 1. */
  readonly frames: number;
  readonly decisions_per_s: number;
  readonly seconds: number;
}

/** Whole decisions only; exact. */
export function billOf(
  planner: Planner,
  priceMilsPerFrame: number,
): { readonly frames: bigint; readonly charge: Mils } {
  const decisions = BigInt(Math.floor(planner.decisions_per_s * planner.seconds));
  const frames = decisions * BigInt(planner.k) * BigInt(planner.frames);
  return { frames, charge: mils(frames * BigInt(priceMilsPerFrame)) };
}
