/** Lets a BullMQ worker be told, once and for all, to fetch no more: `pause` and a forced `close` leave one fetch to come. */
import { setImmediate as nextTurn } from "node:timers/promises";

import type { IQueueBackend } from "bullmq";

export interface FetchGate {
  /** Resolves when no fetch is under way and what the last ones brought has reached the processor. */
  shut(): Promise<void>;
}

export function gateFetches(backend: IQueueBackend): FetchGate {
  const fetch = backend.moveToActive.bind(backend);
  const underWay = new Set<ReturnType<typeof fetch>>();
  let open = true;
  backend.moveToActive = async (...args) => {
    if (!open) return [];
    const fetching = fetch(...args);
    underWay.add(fetching);
    try {
      return await fetching;
    } finally {
      underWay.delete(fetching);
    }
  };
  return {
    async shut() {
      open = false;
      await Promise.allSettled(underWay);
      // From its fetch to the processor a job passes through promises only.
      await nextTurn();
    },
  };
}
