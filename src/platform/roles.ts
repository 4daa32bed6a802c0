/**
 * What each process may do in the database: the least that its own statements need. Nobody here owns anything, so nobody
 * can alter a table, disable a trigger or give rights away; entries, prices, operators' actions and Stripe's events are
 * for adding to and for reading. A table that a process begins to use needs a line here (test/platform/roles.test.ts).
 */
import { escapeIdentifier } from "pg";

import type { Sql } from "./database.ts";

/** The processes that connect to the whole schema; inference workers see the queue's alone (queue/postgres.ts). */
export const PARTS = ["gateway", "settlement", "scheduler", "runner", "notifier"] as const;
export type Part = (typeof PARTS)[number];

/** Privileges as GRANT spells them, with columns where the rest of the row is nobody's to change. */
type Rights = Readonly<Record<string, string>>;

const MOVE_BALANCE = "SELECT, UPDATE (balance_mils, seq, prev_hash, head_hash, last_entry_at)";
const END_ROLLOUT = "status, frames_delivered, refunded_mils, result, error_code, error_message, finished_at";
/** Not whose a dataset is, who pays for it and how much it may cost, nor what its rows are to run. */
const RUN_DATASET =
  "state, pause_reason, message, needs_frames, resting_since, told_short_at, retry_after, rows_pending, rows_running, rows_succeeded, " +
  "rows_failed, rows_cancelled, rows_expired, frames_expected, rows_unmeasured, frames_delivered, held_mils, " +
  "charged_mils, refunded_mils, pace_rows, pace_s, pace_at, runner_id, runner_until, worked_at, finished_at";
const RUN_ROW =
  "state, try, rollout_id, request_id, error_code, error_message, frames, engine_wall_ms, video_key, video_bytes, " +
  "num_actions, charged_mils, refunded_mils, finished_at";
/** Written by whoever ends a rollout or a dataset, in the transaction that ends it. */
const TELL_WEBHOOKS: Rights = { webhook_endpoints: "SELECT", webhook_deliveries: "SELECT, INSERT" };
/** For clients and the dashboard. */
const READ_POOLS: Rights = { pools: "SELECT", pool_hours: "SELECT", pool_events: "SELECT" };
/** For the month's figures (economics/earnings.ts). */
const READ_EARNINGS: Rights = { earnings_hours: "SELECT", pool_earnings: "SELECT", pool_gaps: "SELECT" };
const TOPUP_TOLD = "UPDATE (session_id, session_url, state)";
/** What Stripe says goes in; a decision about a problem is an operator's. */
const TAKE_STRIPE_EVENTS: Rights = {
  payments:
    "SELECT, INSERT, UPDATE (topup_id, paid_cents, refunded_cents, problem, credited_mils, clawed_back_mils, credited_by_event)",
  payment_disputes: "SELECT, INSERT, UPDATE (state, amount_cents)",
  payment_refunds: "SELECT, INSERT, UPDATE (state, amount_cents)",
  stripe_events: "SELECT, INSERT",
  stripe_events_unread: "SELECT, INSERT",
};

const RIGHTS: Readonly<Record<Part, Rights>> = {
  gateway: {
    customers: "SELECT, INSERT, UPDATE (stripe_customer_id)",
    accounts: `INSERT, ${MOVE_BALANCE}`,
    // Locked FOR SHARE by a debit, which needs the right to update some column.
    api_keys: "SELECT, INSERT, UPDATE (revoked_at)",
    api_key_usage: "SELECT, INSERT, UPDATE (last_used_at)",
    rate_buckets: "SELECT, INSERT, UPDATE (full_at), DELETE",
    prices: "SELECT",
    rollouts: `SELECT, INSERT, UPDATE (${END_ROLLOUT}, delivered_at)`,
    idempotency_keys: "SELECT, INSERT, DELETE",
    ledger_entries: "SELECT, INSERT",
    gateway_leases: "SELECT, INSERT, UPDATE, DELETE",
    // For the operator's page.
    ledger_checks: "SELECT",
    stripe_reconciled: "SELECT",
    shared_secrets: "SELECT, INSERT",
    topups: `SELECT, INSERT, ${TOPUP_TOLD}, UPDATE (idempotency_key)`,
    ...TAKE_STRIPE_EVENTS,
    uploads: "SELECT, INSERT, DELETE",
    datasets: "SELECT, INSERT, UPDATE",
    dataset_rows: "SELECT, INSERT",
    dataset_files: "SELECT, INSERT, DELETE",
    webhook_endpoints:
      "SELECT, INSERT, UPDATE (url, description, events, generation, rotated_at, disabled_at, disabled_reason, deleted_at)",
    webhook_signing: "SELECT, INSERT, UPDATE (generation, rotated_at)",
    webhook_deliveries: "SELECT, INSERT, UPDATE (state, reason, uncounted, next_attempt_at, resend, finished_at)",
    webhook_attempts: "SELECT",
    ...READ_POOLS,
    ...READ_EARNINGS,
    schema_migrations: "SELECT",
  },
  settlement: {
    accounts: MOVE_BALANCE,
    rollouts: `SELECT, UPDATE (${END_ROLLOUT})`,
    idempotency_keys: "SELECT, DELETE",
    ledger_entries: "INSERT",
    ...TELL_WEBHOOKS,
    schema_migrations: "SELECT",
  },
  /** Sends webhooks to whatever servers customers name: nothing of it touches money, keys or work. */
  notifier: {
    rollouts: "SELECT",
    datasets: "SELECT",
    // For a dataset's envelope.
    dataset_rows: "SELECT (dataset_id, n, row_id, state, error_code, error_message)",
    prices: "SELECT",
    shared_secrets: "SELECT, INSERT",
    webhook_signing: "SELECT",
    webhook_endpoints: "SELECT, UPDATE (disabled_at, disabled_reason)",
    webhook_deliveries:
      "SELECT, UPDATE (state, reason, attempts, uncounted, next_attempt_at, claimed_until, resend, finished_at)",
    webhook_attempts: "SELECT, INSERT",
    schema_migrations: "SELECT",
  },
  /** Turns rows of datasets into rollouts, and notes what became of them. */
  runner: {
    accounts: MOVE_BALANCE,
    // As for a gateway, and of a column that nothing depends on: it fetches and decodes what customers name.
    api_keys: "SELECT (id, customer_id, expires_at, revoked_at), UPDATE (label)",
    prices: "SELECT",
    rollouts: `SELECT, INSERT, UPDATE (${END_ROLLOUT})`,
    idempotency_keys: "SELECT, INSERT, DELETE",
    ledger_entries: "INSERT",
    datasets: `SELECT, UPDATE (${RUN_DATASET})`,
    dataset_rows: `SELECT, UPDATE (${RUN_ROW})`,
    // Marks the hour whose earnings it changes when it takes a success back.
    earnings_hours: "SELECT (hour), INSERT (hour), UPDATE (rolled_at)",
    ...TELL_WEBHOOKS,
    schema_migrations: "SELECT",
  },
  scheduler: {
    customers: "SELECT",
    accounts: MOVE_BALANCE,
    rollouts: `SELECT, UPDATE (${END_ROLLOUT}, attempt, dispatched_at, sweep_at, deadline_at, files_deleted_at)`,
    webhook_endpoints: "SELECT, DELETE",
    webhook_deliveries: "SELECT, INSERT, DELETE",
    datasets:
      "SELECT, UPDATE (files_deleted_at, state, finished_at, message, idempotency_key, pause_reason, needs_frames, retry_after, resting_since, rows_total, rows_invalid, rows_pending, frames_expected, rows_unmeasured)",
    dataset_files: "SELECT, DELETE",
    dataset_rows: "SELECT, DELETE",
    uploads: "SELECT, DELETE",
    idempotency_keys: "SELECT, DELETE",
    ledger_entries: "SELECT, INSERT",
    ledger_checks: "SELECT, INSERT",
    scheduler_leader: "SELECT, UPDATE (epoch, holder, taken_at)",
    gateway_leases: "SELECT, DELETE",
    pools: "SELECT, INSERT, UPDATE",
    pool_hours: "SELECT, INSERT, UPDATE",
    pool_events: "SELECT, INSERT, DELETE",
    pool_settings: "SELECT",
    earnings_hours: "SELECT, INSERT, UPDATE (rolled_at, gpu_usd_per_hour)",
    pool_earnings: "SELECT, INSERT, DELETE",
    pool_gaps: "SELECT, INSERT, UPDATE (ended_at), DELETE",
    topups: `SELECT, ${TOPUP_TOLD}`,
    ...TAKE_STRIPE_EVENTS,
    stripe_reconciled: "SELECT, INSERT, UPDATE (at, disagreements)",
    prices: "SELECT",
    operator_actions: "SELECT",
    schema_migrations: "SELECT",
  },
};

/** Grants to a role from several processes at once would break each other. "right" in ASCII, cut to 31 bits. */
const GRANT_LOCK = 0x72696768;

/**
 * Gives `role` exactly the rights of that part, whatever it had in this schema before. `tx` because everybody else should
 * see all of it or nothing; needs the owner.
 */
export async function grantRights(tx: Sql, role: string, part: Part): Promise<void> {
  const name = escapeIdentifier(role);
  await withdrawRights(tx, role);
  await tx.query(`GRANT USAGE ON SCHEMA public TO ${name}`);
  for (const [table, privileges] of Object.entries(RIGHTS[part])) {
    await tx.query(`GRANT ${privileges} ON ${table} TO ${name}`);
  }
}

/** Takes every right on a table of this schema away from `role`; for one that needs the queue's alone. */
export async function withdrawRights(tx: Sql, role: string): Promise<void> {
  await tx.query(`SELECT pg_advisory_xact_lock($1)`, [GRANT_LOCK]);
  await tx.query(`REVOKE ALL ON ALL TABLES IN SCHEMA public FROM ${escapeIdentifier(role)}`);
}

/** What the role of this connection lacks to run as that part, such as "UPDATE on topups"; none when all is granted. */
export async function missingRights(sql: Sql, part: Part): Promise<string[]> {
  const needed = Object.entries(RIGHTS[part]).flatMap(([table, privileges]) =>
    [...privileges.matchAll(/([A-Z]+)(?: \(([^)]*)\))?/g)].map(([, privilege, columns]) => ({
      table,
      privilege,
      columns: columns?.split(", ") ?? null,
    })),
  );
  const rows = await sql.query<{ lack: string }>(
    `SELECT concat(privilege, ' on ', name) AS lack
       FROM jsonb_to_recordset($1) AS needed ("table" text, privilege text, columns jsonb),
            LATERAL (SELECT "table" AS name, to_regclass("table") AS oid) AS it
      WHERE oid IS NULL
         OR CASE WHEN columns IS NULL THEN NOT has_table_privilege(oid, privilege)
                 ELSE EXISTS (SELECT FROM jsonb_array_elements_text(columns) AS c (name)
                               WHERE NOT has_column_privilege(oid, c.name, privilege)) END`,
    [JSON.stringify(needed)],
  );
  return rows.map(({ lack }) => lack);
}

/**
 * Whether the role of this connection owns the schema, or may make it where nobody has yet: it migrates, and it may do
 * everything.
 */
export async function isOwner(sql: Sql): Promise<boolean> {
  const [row] = await sql.query<{ owner: boolean }>(
    // Not by to_regclass: to a role that may not use the schema, nothing in it exists.
    `SELECT coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class
                       WHERE relnamespace = 'public'::regnamespace AND relname = 'schema_migrations'),
                     has_schema_privilege('public', 'CREATE')) AS owner`,
  );
  return row?.owner ?? true;
}
