/** Bounds on waiting for somebody else. The work itself goes on, so it must be harmless when it ends late. */

/** Waits for `work` at most `limitMs`; false when it is still unsettled then. Rethrows its rejection. */
export async function settlesWithin(limitMs: number, work: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<false>((resolve) => {
    timer = setTimeout(resolve, limitMs, false);
  });
  try {
    return await Promise.race([work.then(() => true as const), timeout]);
  } finally {
    clearTimeout(timer);
  }
}

/** The result of `work`; rejects when it takes longer than `limitMs`, naming `what`. */
export async function within<T>(limitMs: number, what: string, work: Promise<T>): Promise<T> {
  let result: { readonly value: T } | undefined;
  const settled = await settlesWithin(
    limitMs,
    work.then((value) => (result = { value })),
  );
  if (!settled || result === undefined) throw new Error(`${what} took longer than ${limitMs} ms`);
  return result.value;
}
