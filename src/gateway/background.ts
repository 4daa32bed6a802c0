/** Work that outlives its request (a refund that has to be repeated, a delivery to be noted), awaited when we stop. */
import type { Log } from "#platform/log.ts";

export interface Background {
  /** Never throws: a failure is logged under `what`. */
  run(what: string, work: () => Promise<unknown>): void;
  /** Resolves when everything that was begun is over. */
  settled(): Promise<void>;
}

export function createBackground(log: Log): Background {
  const running = new Set<Promise<void>>();

  async function finish(what: string, work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      log.error({ err: error }, `could not ${what}`);
    }
  }

  return {
    run(what, work) {
      const done = finish(what, work);
      running.add(done);
      void done.finally(() => running.delete(done));
    },
    async settled() {
      while (running.size > 0) await Promise.all(running);
    },
  };
}
