/**
 * One statement of an account at a time. Each would wait for the account's row on a connection of its own, and a
 * customer who ends hundreds of calls at once would have all that this process has; here they wait without one.
 */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";

export interface Turns {
  /**
   * Runs `work` when all that came earlier for this customer is over, and gives what it gives. Throws
   * ApiError(ledger_unavailable), without having begun, when its turn does not come in time: whatever is before it hangs.
   */
  inTurn<T>(customer: CustomerId, work: () => Promise<T>): Promise<T>;
}

/** As long as for a connection, which the first of them waits for, too. */
const WAIT_MAX_MS = 10_000;

export function createTurns(waitMaxMs: number = WAIT_MAX_MS): Turns {
  /** Customers with work under way, and who waits for it to end, in the order of their coming. */
  const waitingOf = new Map<CustomerId, Set<() => void>>();

  async function turn(customer: CustomerId): Promise<void> {
    const waiting = waitingOf.get(customer);
    if (!waiting) {
      waitingOf.set(customer, new Set());
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const begin = (): void => {
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        waiting.delete(begin);
        reject(
          new ApiError("ledger_unavailable", "your account is locked just now; what is due is refunded after that"),
        );
      }, waitMaxMs);
      waiting.add(begin);
    });
  }

  function next(customer: CustomerId): void {
    const waiting = waitingOf.get(customer);
    const [begin] = waiting ?? [];
    if (!begin) {
      waitingOf.delete(customer);
      return;
    }
    waiting?.delete(begin);
    begin();
  }

  return {
    async inTurn(customer, work) {
      await turn(customer);
      try {
        return await work();
      } finally {
        next(customer);
      }
    },
  };
}
