/** Work on many things, so many at once, taken from their source only as places come free. */

/** Rejects with the first failure, after everything that was under way has ended. */
export async function inParallel<T>(
  atOnce: number,
  items: Iterable<T> | AsyncIterable<T>,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const source = toAsync(items);
  let failed = false;
  async function place(): Promise<void> {
    for (;;) {
      const next = failed ? null : await source.next();
      if (next === null || next.done) return;
      await work(next.value);
    }
  }
  const places = Array.from({ length: atOnce }, () =>
    place().catch((error: unknown) => {
      failed = true;
      throw error;
    }),
  );
  const results = await Promise.allSettled(places);
  const failure = results.find((result) => result.status === "rejected");
  if (failure) throw failure.reason;
}

async function* toAsync<T>(items: Iterable<T> | AsyncIterable<T>): AsyncGenerator<T> {
  yield* items;
}
