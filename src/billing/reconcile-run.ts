/** One reconciliation under way: what it may use, what it has seen, and how it repairs or only looks. */
import type { Clock } from "#platform/clock.ts";
import type { Database, Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";

import type { Merged, Moved } from "./move-ledger.ts";
import type { Stripe } from "./stripe.ts";

/** A session is asked for moments after its top-up; two clocks differ by less than this. */
const CLOCKS_DIFFER_MS = 3_600_000;

export const DISAGREEMENT_KINDS = [
  "not_credited",
  "unknown_to_stripe",
  "amount_differs",
  "refund_differs",
  "dispute_differs",
  "no_session",
  "unreadable",
] as const;

export interface Disagreement {
  readonly kind: (typeof DISAGREEMENT_KINDS)[number];
  /** pi_…, or topup_… where there is no payment, or the id of what cannot be read. */
  readonly id: string;
  readonly message: string;
}

export interface Reconciliation {
  readonly since: Date;
  readonly dry_run: boolean;
  readonly looked_at: { events: number; sessions: number; refunds: number; disputes: number; credits: number };
  /** Events that no webhook brought. */
  readonly missed_events: number;
  /** In a dry run: what would be. */
  readonly repaired: readonly string[];
  /** What remains for somebody to decide. */
  readonly disagreements: readonly Disagreement[];
}

export interface ReconcileParts {
  readonly db: Database;
  readonly stripe: Stripe;
  readonly clock: Clock;
  readonly log: Log;
  /** Told after each commit. */
  readonly moved?: (kind: Moved["kind"], amount: Moved["amount"]) => void;
  readonly signal?: AbortSignal;
}

export type Run = ReturnType<typeof createRun>;

export function createRun(parts: ReconcileParts, since: Date, dryRun: boolean) {
  const looked_at = { events: 0, sessions: 0, refunds: 0, disputes: 0, credits: 0 };
  const repaired = new Set<string>();
  const disagreements = new Map<string, Disagreement>();
  let missed_events = 0;

  return {
    ...parts,
    since,
    dryRun,
    looked_at,
    created: { gte: Math.floor((since.getTime() - CLOCKS_DIFFER_MS) / 1000) },
    missed: () => void (missed_events += 1),
    /** Before each step that costs a call or a transaction. */
    checkpoint: () => parts.signal?.throwIfAborted(),
    disagree(kind: Disagreement["kind"], id: string, message: string) {
      disagreements.set(`${kind} ${id}`, { kind, id, message });
    },
    repairedBy: (what: string) => void repaired.add(what),
    /** Commits what `merge` does, or only looks at what it would do. `source`: what it read, where that is not `id`. */
    async apply(id: string, merge: (tx: Sql) => Promise<Merged | null>, source = id): Promise<void> {
      let merged: Merged | null;
      try {
        merged = await (dryRun ? rolledBack(parts.db, merge) : parts.db.transaction(merge));
      } catch (error) {
        // Whatever is the matter with this one, the others are compared. If it is the database, the next list meets it.
        this.checkpoint();
        parts.log.error({ id, source, err: error }, "reconciliation could not take this in");
        this.disagree("unreadable", source, error instanceof Error ? error.message : String(error));
        return;
      }
      if (!merged) return;
      if (merged.unreadable !== null) {
        this.disagree("unreadable", source, merged.unreadable);
        return;
      }
      if (merged.problem !== null) this.disagree("not_credited", id, merged.problem);
      if (merged.outcome === "nothing new" || merged.outcome.startsWith("ignored")) return;
      repaired.add(`${id}: ${merged.outcome}`);
      if (dryRun) return;
      parts.log.warn({ id, outcome: merged.outcome }, "reconciliation repaired what no webhook had told");
      for (const { kind, amount } of merged.moved) parts.moved?.(kind, amount);
    },
    report: (): Reconciliation => ({
      since,
      dry_run: dryRun,
      looked_at,
      missed_events,
      repaired: [...repaired],
      disagreements: [...disagreements.values()],
    }),
  };
}

/** Ends a transaction by its own result. */
class RollBack<T> extends Error {
  readonly result: T;
  constructor(result: T) {
    super("rolled back on purpose");
    this.result = result;
  }
}

async function rolledBack<T>(db: Database, look: (tx: Sql) => Promise<T>): Promise<T> {
  const looked = await db
    .transaction(async (tx): Promise<T> => {
      throw new RollBack(await look(tx));
    })
    .catch((error: unknown) => error);
  if (looked instanceof RollBack) return looked.result as T; // made three lines above, with that type
  throw looked;
}
