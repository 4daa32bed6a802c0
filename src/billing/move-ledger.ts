/** A payment's row, and the one place where it moves money: the ledger follows what the row implies. */
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { clawBack, reinstate } from "#ledger/clawback.ts";
import { credit } from "#ledger/ledger.ts";
import type { Sql } from "#platform/database.ts";

const MILS_PER_CENT = 100;

/** A payment's reinstatement counts as a clawback, too; amounts are above zero. */
export interface Moved {
  readonly kind: "credit" | "clawback";
  readonly amount: Mils;
}

export interface Merged {
  /** For stripe_events and the log: "credited 2500 cents to cus_…", "nothing new", "ignored: …". */
  readonly outcome: string;
  readonly moved: readonly Moved[];
  /** Why money that Stripe holds is not credited; null where all is well. */
  readonly problem: string | null;
  /** Why it may be about our money and could not be read; null where it could. */
  readonly unreadable: string | null;
}

export interface Payment {
  readonly id: string;
  readonly topup_id: string | null;
  readonly paid_cents: number | null;
  /** The most that Stripe ever said in all, refunds that failed later included. */
  readonly refunded_cents: number;
  readonly credited_mils: Mils;
  readonly clawed_back_mils: Mils;
  readonly problem: string | null;
  readonly resolution: string | null;
}

/** The row, made if need be, and nobody else's until the transaction ends; nor can its refunds change meanwhile. */
export async function lockPayment(tx: Sql, id: string): Promise<Payment> {
  await lockRefundsOf(tx, id);
  await tx.query(`INSERT INTO payments (id) VALUES ($1) ON CONFLICT DO NOTHING`, [id]);
  const [row] = await tx.query<Payment>(
    `SELECT id, topup_id, paid_cents, refunded_cents, credited_mils, clawed_back_mils, problem, resolution
       FROM payments WHERE id = $1 FOR UPDATE`,
    [id],
  );
  if (!row) throw new Error(`payment ${id} neither made nor found`);
  return row;
}

/** Refunds may be told before there is a payments row to lock. "refund" in ASCII, cut to 31 bits. */
const REFUNDS_LOCK = 0x72656675;

export async function lockRefundsOf(tx: Sql, paymentId: string): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock($1, hashtext($2))`, [REFUNDS_LOCK, paymentId]);
}

/** Credited once it may be, then clawed back as far as it is taken back. The payment's row is locked. */
export async function moveLedger(
  tx: Sql,
  payment: Payment,
  { eventId, said, returned = "dispute won" }: { eventId: string | null; said: string | null; returned?: string },
): Promise<Merged> {
  const moved: Moved[] = [];
  const outcome: string[] = said === null ? [] : [said];
  const customer_id = await ownerOf(tx, payment);
  let credited = payment.credited_mils;
  // A problem that an operator resolved without crediting stays uncredited.
  const due = payment.paid_cents !== null && payment.problem === null && payment.resolution === null;
  if (credited === 0n && due && customer_id !== null) {
    credited = mils((payment.paid_cents ?? 0) * MILS_PER_CENT);
    await credit(tx, { customer_id, amount: credited, reference: payment.id, detail: `top-up · $${usd(credited)}` });
    moved.push({ kind: "credit", amount: credited });
    outcome.push(`credited ${usd(credited)} to ${customer_id}`);
  }
  const { target, why } = await takenBack(tx, payment, credited);
  const change = target - payment.clawed_back_mils;
  if (change !== 0n && customer_id !== null) {
    const amount = mils(change > 0n ? change : -change);
    const entry = { customer_id, amount, reference: payment.id };
    if (change > 0n) await clawBack(tx, { ...entry, detail: `${why} · $${usd(amount)}` });
    else await reinstate(tx, { ...entry, detail: `${returned} · $${usd(amount)}` });
    moved.push({ kind: "clawback", amount });
    outcome.push(`${change > 0n ? "clawed back" : "gave back"} ${usd(amount)}`);
  }
  if (moved.length > 0) {
    await tx.query(
      `UPDATE payments SET credited_mils = $2, clawed_back_mils = $3,
              credited_by_event = CASE WHEN credited_mils = 0 THEN $4 ELSE credited_by_event END
        WHERE id = $1`,
      [payment.id, credited, target, eventId],
    );
  }
  if (payment.problem !== null) outcome.push(`not credited: ${payment.problem}`);
  return { outcome: outcome.join(", ") || "nothing new", moved, problem: payment.problem, unreadable: null };
}

/** Whole cents, as people write them. */
const usd = (amount: Mils): string => usdText(amount).slice(0, -2);

/** Refunds and disputes of one payment may overlap; more than was credited is never taken back. */
async function takenBack(tx: Sql, payment: Payment, credited: Mils): Promise<{ target: Mils; why: string }> {
  const [row] = await tx.query<{ refunded: bigint; disputed: bigint }>(
    `SELECT refunded_cents($1, $2::integer) AS refunded,
            (SELECT coalesce(sum(amount_cents), 0)::bigint FROM payment_disputes
              WHERE payment_id = $1 AND state IN ('open', 'lost')) AS disputed`,
    [payment.id, payment.refunded_cents],
  );
  const { refunded, disputed } = row ?? { refunded: 0n, disputed: 0n };
  const sum = (refunded + disputed) * BigInt(MILS_PER_CENT);
  const why = [refunded > 0n && "refunded", disputed > 0n && "disputed"].filter(Boolean).join(" and ");
  return { target: sum < credited ? mils(sum) : credited, why: `payment ${why}` };
}

async function ownerOf(tx: Sql, { topup_id }: Payment): Promise<string | null> {
  if (topup_id === null) return null;
  const [row] = await tx.query<{ customer_id: string }>(`SELECT customer_id FROM topups WHERE id = $1`, [topup_id]);
  return row?.customer_id ?? null;
}
