/**
 * The real ledger as the auditor drives it: each operation through the function that the program uses, on a database
 * that is made to fail. `snapshot` reads the books past all of that.
 */
import { randomBytes } from "node:crypto";

import { DatabaseError } from "pg";

import { ApiError } from "#contract/errors.ts";
import type { CustomerId, KeyId, RolloutId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { grantCredit } from "#billing/operator.ts";
import { takeEvent } from "#billing/take-event.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import { adjust } from "#ledger/adjust.ts";
import { type Clawback, clawBack, reinstate } from "#ledger/clawback.ts";
import type { Database, Sql } from "#platform/database.ts";
import type { Accepted } from "#rollouts/accept.ts";
import type { NewRollout } from "#rollouts/rollout.ts";
import { markDispatched } from "#rollouts/dispatch.ts";
import { settle } from "#rollouts/settle.ts";
import { fingerprint, newRollout } from "#test/support/ledger.ts";

import { silentLog } from "#test/support/postgres.ts";

import {
  type Entry,
  type Operation,
  type PaymentState,
  type Reply,
  type Snapshot,
  TOPUP_CENTS,
} from "./auditor-model.ts";
import { eventOf, paymentId, topupId } from "./stripe-events.ts";

/** `failed`: the database said that nothing happened; `unknown`: it said nothing. */
export type Answer = Reply | "failed" | "unknown";

export interface SystemParts {
  /** What the operations run on. */
  readonly db: Database;
  /** Never made to fail. */
  readonly quiet: Database;
  readonly accept: (rollout: NewRollout) => Promise<Accepted>;
  readonly epoch: bigint;
}

export interface RealSystem {
  readonly customers: readonly RealCustomer[];
  /** In the order of acceptance, as far as we were told; see `findLost`. */
  readonly rollouts: RolloutId[];
  apply(operation: Operation): Promise<Answer>;
  /** Takes note of what took effect although nobody told us: rollouts and keys. */
  findLost(): Promise<void>;
  snapshot(): Promise<Snapshot>;
}

interface RealCustomer {
  readonly id: CustomerId;
  readonly keys: KeyId[];
  /** Ids of the events that were sent about this customer's payments. */
  readonly events: Set<string>;
}

/** Begins the references of clawbacks without a payment behind them, of which `ledger verify` complains with reason. */
export const MADE_UP = "made_up_";

/** SQLSTATEs with which a statement has certainly done nothing: serialization failure, deadlock, timeout. */
const ROLLED_BACK = ["40001", "40P01", "57014"];

export async function createSystem(parts: SystemParts, customers: number, keys: number): Promise<RealSystem> {
  const { db, quiet, epoch } = parts;
  const list: RealCustomer[] = [];
  for (let customer = 0; customer < customers; customer++) list.push(await newCustomer(quiet, keys));
  const rollouts: RolloutId[] = [];
  const customerOf = (index: number): RealCustomer => {
    const customer = list[index];
    if (!customer) throw new Error(`there is no customer ${index}`);
    return customer;
  };
  const referenceOf = (operation: { customer: number; payment: number }): string =>
    `grant_${customerOf(operation.customer).id}_${operation.payment}`;

  async function run(operation: Operation): Promise<Reply> {
    switch (operation.do) {
      case "grant": {
        const { id: customer_id } = customerOf(operation.customer);
        const { amount } = operation;
        const reference = referenceOf(operation);
        const by = { operator: "auditor", reason: "history" };
        const { credited } = await grantCredit(db, { customer_id, amount: mils(amount), reference, ...by });
        return credited ? "done" : "nothing";
      }
      case "accept":
        return await accept(operation);
      case "dispatch": {
        const id = rollouts[operation.rollout];
        return id !== undefined && (await markDispatched(db, epoch, [id])).length === 1 ? "done" : "nothing";
      }
      case "settle": {
        const id = rollouts[operation.rollout];
        const settled = id !== undefined && (await settle(db, id, operation.attempt, operation.outcome)).settled;
        return settled ? "done" : "nothing";
      }
      case "claw back":
      case "reinstate": {
        const move: (tx: Sql, amount: Clawback) => Promise<unknown> =
          operation.do === "reinstate" ? reinstate : clawBack;
        const { id: customer_id } = customerOf(operation.customer);
        const reference = `${MADE_UP}${referenceOf(operation)}`;
        await db.transaction((tx) =>
          move(tx, { customer_id, amount: mils(operation.amount), reference, detail: operation.do }),
        );
        return "done";
      }
      case "adjust": {
        const { id: customer_id } = customerOf(operation.customer);
        const reference = `adjust_${randomBytes(8).toString("hex")}`;
        await db.transaction(async (tx) => {
          await tx.query(
            `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
             VALUES ('auditor', 'credits adjust', $1, 'history', $2, jsonb_build_object('amount_mils', $3::bigint))`,
            [customer_id, reference, operation.amount],
          );
          await adjust(tx, { customer_id, amount: mils(operation.amount), reference, detail: "adjusted" });
        });
        return "done";
      }
      case "event": {
        const customer = customerOf(operation.customer);
        const event = eventOf(customer.id, operation);
        customer.events.add(event.id);
        return (await takeEvent({ db, log: silentLog, moved: () => undefined }, event)) ? "done" : "nothing";
      }
      case "mint": {
        const customer = customerOf(operation.customer);
        const { key_id } = await createKey(db, { customer: customer.id }, randomBytes);
        customer.keys.push(key_id);
        return "done";
      }
      case "revoke": {
        const id = customerOf(operation.customer).keys[operation.key];
        if (id === undefined) return "nothing";
        await revokeKey(db, id);
        return "done";
      }
      case "expire": {
        const id = customerOf(operation.customer).keys[operation.key];
        if (id === undefined) return "nothing";
        // Stands for time that passes.
        await quiet.query(`UPDATE api_keys SET expires_at = now() WHERE id = $1`, [id]);
        return "done";
      }
      case "price":
        await quiet.query(
          `INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, $2, now(), 'history')`,
          [customerOf(operation.customer).id, operation.mils],
        );
        return "done";
      default:
        return operation satisfies never;
    }
  }

  async function accept(operation: Operation & { do: "accept" }): Promise<Reply> {
    const customer = customerOf(operation.customer);
    const key_id = customer.keys[operation.key];
    if (key_id === undefined) return "nothing";
    const { kind, rollout } = await parts.accept(
      newRollout(
        { key_id, customer_id: customer.id },
        {
          k: operation.k,
          actions_per_candidate: operation.actions,
          idempotency_key: operation.idempotency === null ? null : `key-${operation.idempotency}`,
          fingerprint: fingerprint(`payload ${operation.payload}`),
        },
      ),
    );
    if (kind === "accepted") return { accepted: rollouts.push(rollout.id) - 1 };
    // One that only the database knows of so far: its acceptance was answered by a broken connection.
    if (!rollouts.includes(rollout.id)) rollouts.push(rollout.id);
    return { replayed: rollouts.indexOf(rollout.id) };
  }

  async function findLost(): Promise<void> {
    for (const customer of list) {
      const found = await quiet.query<{ id: RolloutId }>(
        `SELECT rollout_id AS id FROM ledger_entries WHERE customer_id = $1 AND kind = 'debit' ORDER BY seq`,
        [customer.id],
      );
      for (const { id } of found) if (!rollouts.includes(id)) rollouts.push(id);
      const keys = await quiet.query<{ id: KeyId }>(
        `SELECT id FROM api_keys WHERE customer_id = $1 ORDER BY created_at`,
        [customer.id],
      );
      for (const { id } of keys) if (!customer.keys.includes(id)) customer.keys.push(id);
    }
  }

  async function payments(customer: CustomerId): Promise<PaymentState[]> {
    const rows = await quiet.query<PaymentState & { id: string }>(
      `SELECT id, credited_mils::int AS credited, clawed_back_mils::int AS "clawedBack"
         FROM payments WHERE id = ANY ($1)`,
      [TOPUP_CENTS.map((_, payment) => paymentId(customer, payment))],
    );
    return TOPUP_CENTS.map((_, payment) => {
      const row = rows.find(({ id }) => id === paymentId(customer, payment));
      return { credited: row?.credited ?? 0, clawedBack: row?.clawedBack ?? 0 };
    });
  }

  async function eventsTaken(customer: CustomerId): Promise<number> {
    const sent = list.find(({ id }) => id === customer)?.events ?? new Set();
    return (await quiet.query(`SELECT id FROM stripe_events WHERE id = ANY ($1)`, [[...sent]])).length;
  }

  async function snapshot(): Promise<Snapshot> {
    const seen = [];
    for (const { id, keys } of list) {
      const entries = async (account: string): Promise<Entry[]> => {
        const rows = await quiet.query<{ kind: string; amount: number; after: number; rollout: RolloutId | null }>(
          `SELECT kind, amount_mils::int AS amount, balance_after_mils::int AS after, rollout_id AS rollout
             FROM ledger_entries WHERE customer_id = $1 AND account = $2 ORDER BY seq`,
          [id, account],
        );
        return rows.map(({ kind, amount, after, rollout }) => [
          kind,
          amount,
          after,
          rollout === null ? null : rollouts.indexOf(rollout),
        ]);
      };
      const accounts = await quiet.query<{ account: string; mils: number }>(
        `SELECT account, balance_mils::int AS mils FROM accounts WHERE customer_id = $1 ORDER BY account`,
        [id],
      );
      const keyRows = await quiet.query<{ id: KeyId; revoked: boolean; expired: boolean }>(
        `SELECT id, revoked_at IS NOT NULL AS revoked, coalesce(expires_at <= now(), false) AS expired
           FROM api_keys WHERE customer_id = $1`,
        [id],
      );
      const remembered = await quiet.query<{ key: number; rollout: RolloutId }>(
        `SELECT substr(key, 5)::int AS key, rollout_id AS rollout FROM idempotency_keys WHERE customer_id = $1 ORDER BY 1`,
        [id],
      );
      seen.push({
        balance: accounts[0]?.mils ?? NaN,
        debt: accounts[1]?.mils ?? NaN,
        balanceEntries: await entries("balance"),
        debtEntries: await entries("debt"),
        keys: keyRows
          .sort((a, b) => keys.indexOf(a.id) - keys.indexOf(b.id))
          .map(({ revoked, expired }) => ({ revoked, expired })),
        remembered: remembered.map(({ key, rollout }) => [key, rollouts.indexOf(rollout)] as const),
        payments: await payments(id),
        events: await eventsTaken(id),
      });
    }
    const rows = await quiet.query<Snapshot["rollouts"][number] & { id: RolloutId; owner: CustomerId }>(
      `SELECT id, customer_id AS owner, status, attempt, charge_mils::int AS charge, refunded_mils::int AS refunded
         FROM rollouts WHERE customer_id = ANY ($1)`,
      [list.map(({ id }) => id)],
    );
    return {
      customers: seen,
      rollouts: rows
        .sort((a, b) => rollouts.indexOf(a.id) - rollouts.indexOf(b.id))
        .map(({ owner, status, attempt, charge, refunded }) => ({
          customer: list.findIndex(({ id }) => id === owner),
          status,
          attempt,
          charge,
          refunded,
        })),
    };
  }

  return {
    customers: list,
    rollouts,
    findLost,
    snapshot,
    apply: (operation) => run(operation).catch((error: unknown) => answerOf(error)),
  };
}

async function newCustomer(db: Database, keys: number): Promise<RealCustomer> {
  const customer = `cus_${randomBytes(8).toString("hex")}`;
  const ids: KeyId[] = [];
  for (let key = 0; key < keys; key++) ids.push((await createKey(db, { customer }, randomBytes)).key_id);
  const id = customer as CustomerId; // of the form that createKey takes for an id
  await db.query(
    `INSERT INTO topups (id, customer_id, request_id, amount_cents)
     SELECT id, $2, 'req_history', cents FROM unnest($1::text[], $3::int[]) AS topup (id, cents)`,
    [TOPUP_CENTS.map((_, payment) => topupId(id, payment)), id, TOPUP_CENTS],
  );
  return { id, keys: ids, events: new Set() };
}

function answerOf(error: unknown): Answer {
  if (error instanceof ApiError) {
    const known: Partial<Record<string, Reply>> = {
      insufficient_credits: "too little",
      idempotency_mismatch: "mismatch",
      revoked_key: "revoked",
      expired_key: "expired",
    };
    const reply = known[error.code];
    if (reply !== undefined) return reply;
  }
  if (error instanceof DatabaseError && ROLLED_BACK.includes(error.code ?? "")) return "failed";
  if (error instanceof Error && error.message.includes("stands for a credit")) return "conflict";
  if (isLost(error)) return "unknown";
  throw error;
}

/** What the driver says of a connection that is gone. */
function isLost(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = "code" in error ? String(error.code) : "";
  return (
    /Connection terminated|not queryable|Client has encountered a connection error|Connection ended/.test(
      error.message,
    ) || ["ECONNRESET", "EPIPE", "ECONNREFUSED"].includes(code)
  );
}
