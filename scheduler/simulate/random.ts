/** Reproducible randomness for generated traces: the same seed gives the same trace on any machine. */

export interface Random {
  /** Uniform, 0 included, 1 not. */
  next(): number;
  /** Exponential with this mean. */
  exponential(mean: number): number;
  /** A whole number from 0 to below `end`. */
  below(end: number): number;
}

/** mulberry32 (Tommy Ettinger, public domain): 32 bits of state, and good enough for arrivals. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  function next(): number {
    state = (state + 0x6d_2b_79_f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
  return {
    next,
    exponential: (mean) => -mean * Math.log(1 - next()),
    below: (end) => Math.floor(next() * end),
  };
}
