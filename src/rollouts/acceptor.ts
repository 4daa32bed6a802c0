/**
 * Debits of one account, coalesced. Alone, each waits for the account's row until the one before it is on disk, so one
 * busy customer gets one debit a disk write. Here, while a statement of an account runs, the next rollouts of that
 * account gather, and go together in the statement after it: one transaction with one lock, one write to disk, and
 * each rollout's own key check, idempotency and refusal. An account without a statement under way is not waited for.
 */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { type Accepted, finishAccepting } from "./accept.ts";
import type { NewRollout } from "./rollout.ts";
import { tryAccepting } from "./try-accepting.ts";

export interface Acceptor {
  /**
   * As acceptRollout. Where a statement fails, all that went in it get its error: no ApiError, and isUndone says whether
   * it leaves open what became of the rollout. Whoever is `gone` before their statement begins costs nothing:
   * ApiError(client_closed_request).
   */
  accept(r: NewRollout, gone?: AbortSignal): Promise<Accepted>;
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
  readonly gone: AbortSignal | undefined;
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
    const waiting = [first];
    gathered.set(customer, waiting);
    while (waiting.length > 0) {
      const batch = takeBatch(waiting, perStatementMax);
      if (batch.length > 0) await acceptBatch(db, batch);
    }
    gathered.delete(customer);
  }

  return {
    accept: (rollout, gone) =>
      new Promise((resolve, reject) => {
        const caller = { rollout, gone, resolve, reject };
        const waiting = gathered.get(rollout.customer_id);
        if (!waiting) void serve(rollout.customer_id, caller);
        else if (waiting.length < gatheredMax) waiting.push(caller);
        else reject(new ApiError("no_capacity", "too many of your requests wait to be paid; try again in a moment"));
      }),
  };
}

/** From the front, up to the second one with the same idempotency key: it has to see what becomes of the first. */
function takeBatch(waiting: Caller[], max: number): Caller[] {
  const batch: Caller[] = [];
  const keys = new Set<string>();
  let taken = 0;
  for (const caller of waiting) {
    const { idempotency_key: key } = caller.rollout;
    if (caller.gone?.aborted) {
      caller.reject(new ApiError("client_closed_request", "the caller went away before it was charged"));
    } else {
      if (batch.length === max || (key !== null && keys.has(key))) break;
      if (key !== null) keys.add(key);
      batch.push(caller);
    }
    taken += 1;
  }
  waiting.splice(0, taken);
  return batch;
}

/** Answers every caller, and each as soon as it is known; never rejects. */
async function acceptBatch(db: Sql, batch: readonly Caller[]): Promise<void> {
  /** These need a few statements more to learn why not: when all that may be in are in. */
  const others: (() => Promise<void>)[] = [];
  const asked = batch.map((caller) => ({ ...caller.rollout, caller }));
  await tryAccepting(db, asked, ({ caller: { rollout, resolve, reject } }, tried) => {
    const finish = (): Promise<void> => finishAccepting(db, rollout, tried).then(resolve, reject);
    const looksFirst = !tried || (tried.kind === "short" && rollout.idempotency_key !== null);
    if (looksFirst) others.push(finish);
    else void finish();
  });
  for (const finish of others) await finish();
}
