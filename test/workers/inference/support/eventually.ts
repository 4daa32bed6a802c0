const LOOK_INTERVAL_MS = 10;

/** Looks again and again; resolves with the first value that is something. The bound is the caller's last word. */
export async function eventually<T>(
  look: () => Promise<T | null | undefined | false | 0> | T | null | undefined | false | 0,
  limitMs = 45_000,
): Promise<T> {
  const end = performance.now() + limitMs;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_INTERVAL_MS));
  }
}
