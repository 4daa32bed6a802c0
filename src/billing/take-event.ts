/** An event of Stripe's into the books: once, in one transaction with everything that comes of it. */
import type { Mils } from "#contract/mils.ts";
import type { Database, Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";

import { factsOfEvent, type StripeEvent } from "./events.ts";
import type { Merged } from "./move-ledger.ts";
import { mergeFacts } from "./payments.ts";

export interface EventParts {
  readonly db: Database;
  readonly log: Log;
  /** Told after the commit, for metrics. */
  readonly moved: (kind: "credit" | "clawback", amount: Mils) => void;
}

/** Null for an event that was taken in before. Throws when it cannot be stored: then it has to come again. */
export async function takeEvent({ db, log, moved }: EventParts, event: StripeEvent): Promise<Merged | null> {
  const taken = await db.transaction((tx) => takeEventIn(tx, event));
  if (!taken) return null;
  for (const { kind, amount } of taken.moved) moved(kind, amount);
  const line = { event: event.id, type: event.type, outcome: taken.outcome };
  if (taken.unreadable !== null) log.error(line, "an event of Stripe's about our money cannot be read");
  else if (taken.problem === null) log.info(line, "event of Stripe's");
  else log.error(line, "a payment that Stripe holds is not credited");
  return taken;
}

/**
 * Within a transaction, which reconciliation may also roll back.
 *
 * What cannot be read is kept aside and acknowledged. Refused, it would come again unchanged for three days, after which
 * Stripe forgets it, and an endpoint that fails for days is switched off, for every payment. Kept, it is counted until it
 * is read (an alert), reconciliation names it and tries it again, and a newer version of the program then reads it.
 */
export async function takeEventIn(tx: Sql, event: StripeEvent): Promise<Merged | null> {
  const [seen] = await tx.query(`SELECT id FROM stripe_events WHERE id = $1`, [event.id]);
  if (seen) return null;
  const merged = await mergeFacts(tx, factsOfEvent(event), event.id);
  if (merged.unreadable !== null) {
    await tx.query(`INSERT INTO stripe_events_unread (id, type, why) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, [
      event.id,
      event.type,
      merged.unreadable,
    ]);
    return merged;
  }
  // The same event twice at once: the second one met the first one's rows above and found nothing to change.
  const [stored] = await tx.query(
    `INSERT INTO stripe_events (id, type, created_at, outcome) VALUES ($1, $2, coalesce(to_timestamp($3), now()), $4)
     ON CONFLICT DO NOTHING RETURNING id`,
    [event.id, event.type, event.created ?? null, merged.outcome],
  );
  return stored ? merged : null;
}
