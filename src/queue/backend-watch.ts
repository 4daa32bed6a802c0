/** Asks a backend something cheap, again and again, and reports when it has not answered for a long time. */
export interface BackendWatch {
  /** Resolves once; never rejects. */
  readonly broken: Promise<Error>;
  stop(): void;
}

export function watchBackend({
  probe,
  intervalMs,
  brokenAfterMs,
}: {
  readonly probe: () => Promise<unknown>;
  readonly intervalMs: number;
  readonly brokenAfterMs: number;
}): BackendWatch {
  const { promise: broken, resolve } = Promise.withResolvers<Error>();
  let answeredAt = performance.now();
  let unanswered = false;
  let cause: unknown = new Error("no answer");

  async function ask(): Promise<void> {
    unanswered = true;
    try {
      await probe();
      answeredAt = performance.now();
    } catch (error) {
      cause = error;
    } finally {
      unanswered = false;
    }
  }

  const timer = setInterval(() => {
    const silentMs = performance.now() - answeredAt;
    if (silentMs > brokenAfterMs) {
      clearInterval(timer);
      resolve(new Error(`the queue has been out of reach for ${Math.round(silentMs / 1000)} s`, { cause }));
    } else if (!unanswered) {
      void ask();
    }
  }, intervalMs);
  return { broken, stop: () => clearInterval(timer) };
}
