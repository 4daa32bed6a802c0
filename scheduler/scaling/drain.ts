/** Which workers go when there are more than a pool should have. Pure. A worker with work never does: it is asked again later. */

export interface DrainCandidate {
  readonly name: string;
  /** Jobs in its hands, finished ones that are not reported yet among them. */
  readonly jobs: number;
  /** Epoch ms since when it has had none; meaningless while it has one. */
  readonly idle_since_ms: number;
}

/**
 * Names of at most `surplus` ready workers to drain, those that have been idle longest first. The queue may hand one a job
 * before it hears of it; that is why it drains, and is not killed.
 */
export function chooseDrains(ready: readonly DrainCandidate[], surplus: number): string[] {
  return ready
    .filter(({ jobs }) => jobs === 0)
    .toSorted((a, b) => a.idle_since_ms - b.idle_since_ms)
    .slice(0, Math.max(0, surplus))
    .map(({ name }) => name);
}
