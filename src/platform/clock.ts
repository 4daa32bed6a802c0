/** Time as a parameter. Epoch milliseconds; production passes `systemClock`, tests pass their own. */
export interface Clock {
  now(): number;
}

export const systemClock: Clock = { now: () => Date.now() };
