/**
 * Debits of one account, coalesced. Alone, each waits for the account's row until the one before it is on disk, so one
 * busy customer gets one debit a disk write. Here, while a statement of an account runs, the next rollouts of that
 * account gather, and go together in the statement after it: one transaction with one lock, one write to disk, and
 * each rollout's own key check, idempotency and refusal. An account without a statement under way is not waited for.
 */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { type Accepted, finishAccepting, type NewRollout, tryAccepting } from "./accept.ts";

export interface Acceptor {
  /**
   * As acceptRollout. An error that is no ApiError leaves open whether the rollout was accepted (the connection broke):
   * all that went in the same statement get it.
   */
  accept(r: NewRollout): Promise<Accepted>;
}

/**
 * Rollouts of one statement. Sixteen already bring most of the gain, and 256 take some 30 ms, so that the account's row
 * is not held from settlements and other gateways for longer.
 */
const ROLLOUTS_PER_STATEMENT_MAX = 256;
/** Who gathers for one account: four statements' worth, a fraction of a second. More means that the database hangs. */
const GATHERED_MAX = 4 * ROLLOUTS_PER_STATEMENT_MAX;

interface Caller {
  readonly rollout: NewRollout;
  readonly resolve: (accepted: Accepted) => void;
  readonly reject: (reason: unknown) => void;
}

export interface AcceptorOptions {
  readonly perStatementMax?: number;
  readonly gatheredMax?: number;
}

export function createAcceptor(db: Sql, options: AcceptorOptions = {}): Acceptor {
  const { perStatementMax = ROLLOUTS_PER_STATEMENT_MAX, gatheredMax = GATHERED_MAX } = options;
  /** Accounts with a statement under way, and who gathers for the next one, in the order of their coming. */
  const gathered = new Map<CustomerId, Caller[]>();

  async function serve(customer: CustomerId, first: Caller): Promise<void> {
    const waiting: Caller[] = [];
    gathered.set(customer, waiting);
    let batch = [first];
    while (batch.length > 0) {
      await acceptBatch(db, batch);
      batch = takeBatch(waiting, perStatementMax);
    }
    gathered.delete(customer);
  }

  return {
    accept: (rollout) =>
      new Promise((resolve, reject) => {
        const caller = { rollout, resolve, reject };
        const waiting = gathered.get(rollout.customer_id);
        if (!waiting) void serve(rollout.customer_id, caller);
        else if (waiting.length < gatheredMax) waiting.push(caller);
        else reject(new ApiError("no_capacity", "too many of your requests wait to be paid; try again in a moment"));
      }),
  };
}

/** From the front, up to the second one with the same idempotency key: it has to see what becomes of the first. */
function takeBatch(waiting: Caller[], max: number): Caller[] {
  const keys = new Set<string>();
  const end = waiting.findIndex(({ rollout: { idempotency_key: key } }, n) => {
    if (n === max || (key !== null && keys.has(key))) return true;
    if (key !== null) keys.add(key);
    return false;
  });
  return waiting.splice(0, end === -1 ? waiting.length : end);
}

/** Answers every caller; never rejects. */
async function acceptBatch(db: Sql, batch: readonly Caller[]): Promise<void> {
  const tried = await tryAccepting(
    db,
    batch.map(({ rollout }) => rollout),
  );
  // Those that are in first: the others may need a few statements more to learn why not.
  const others = batch.filter(({ rollout, resolve }) => {
    const outcome = tried.get(rollout.id);
    if (outcome?.kind === "accepted") resolve(outcome);
    return outcome?.kind !== "accepted";
  });
  for (const { rollout, resolve, reject } of others) {
    await finishAccepting(db, rollout, tried.get(rollout.id)).then(resolve, reject);
  }
}
