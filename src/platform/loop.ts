/**
 * Work that is done again and again: when somebody wakes it, and every `everyMs` in case the call was lost. One run at
 * a time; calls during a run are remembered as one.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { Service } from "./lifecycle.ts";
import type { Log } from "./log.ts";

export interface Loop extends Service {
  wake(): void;
}

export interface LoopOptions {
  readonly name: string;
  readonly everyMs: number;
  /** One round. It looks at `signal` between its steps, because a stopped loop must not act any more. */
  readonly run: (signal: AbortSignal) => Promise<void>;
  readonly log: Log;
}

export function startLoop({ name, everyMs, run, log }: LoopOptions): Loop {
  const stopped = new AbortController();
  let called = new AbortController();

  const rounds = async (): Promise<void> => {
    while (!stopped.signal.aborted) {
      called = new AbortController();
      let failed = false;
      try {
        await run(stopped.signal);
      } catch (error) {
        failed = true;
        if (!stopped.signal.aborted) log.error({ err: error, loop: name }, "a round failed; the next one tries again");
      }
      // After a failure only the timer counts: calls come in by the hundred while the database is away.
      const end = failed ? stopped.signal : AbortSignal.any([stopped.signal, called.signal]);
      await delay(everyMs, undefined, { signal: end }).catch(() => undefined); // a call ends the pause early
    }
  };
  const ended = rounds();

  return {
    wake: () => called.abort(),
    async stop() {
      stopped.abort();
      await ended;
    },
  };
}
