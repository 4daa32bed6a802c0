/**
 * The cheapest rental that could have carried a given profile of busy workers: the clairvoyant's.
 *
 * Let B(t) be how many workers are busy at t, and R(t) ≥ B(t) how many are rented. A rental costs ∫R dt, and a cold start of
 * C seconds for each step up of R. With R_j(t) = [R(t) ≥ j] both are sums over levels: ∫R = Σ_j ∫R_j, and a step up of R
 * is a step up of some R_j. R ≥ B says R_j ≥ B_j for each j, so each level can be looked at by itself: it has to be rented
 * while B_j = 1, and over a gap of g seconds of B_j it either stays rented, for g, or is let go and started again, for C or
 * more. So
 *
 *     cost ≥ ∫B dt + Σ_j (C + Σ_{gaps g of level j} min(g, C))
 *
 * and the rental that keeps exactly the gaps with g ≤ C attains it (a freed worker goes on top of a stack of idle ones, the
 * next job takes the top: then the k-th place of the stack is a level). The gaps before the first and after the last need
 * cost nothing. Decomposition into levels: Lu, Chen, Andrew, "Simple and Effective Dynamic Provisioning for
 * Power-Proportional Data Centers", IEEE TPDS 24(6), 2013.
 */

export interface Rental {
  /** Seconds of rent, by what went by meanwhile. */
  readonly rent_s: { readonly starting: number; readonly busy: number; readonly idle: number };
  readonly starts: number;
  readonly peak_workers: number;
}

export interface Levels {
  /** One more worker is busy from this moment on. Moments never go back. */
  rise(atS: number): void;
  fall(atS: number): void;
  /** The cheapest rental so far. */
  cheapest(): Rental;
}

export function createLevels(coldStartS: number): Levels {
  /** When each level that was ever busy fell idle; entries below `level` are out of date. */
  const idleSince: number[] = [];
  let [level, busy, idle, starts] = [0, 0, 0, 0];
  return {
    rise(atS) {
      const since = idleSince[level];
      const gap = since === undefined ? Number.POSITIVE_INFINITY : atS - since;
      if (gap > coldStartS) starts += 1;
      else idle += gap;
      if (since === undefined) idleSince.push(atS);
      level += 1;
      busy -= atS;
    },
    fall(atS) {
      level -= 1;
      idleSince[level] = atS;
      busy += atS;
    },
    cheapest: () => ({
      rent_s: { starting: starts * coldStartS, busy, idle },
      starts,
      peak_workers: idleSince.length,
    }),
  };
}

export const rentOf = ({ rent_s: { starting, busy, idle } }: Rental): number => starting + busy + idle;
