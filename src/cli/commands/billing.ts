/** `dream-engine billing reconcile|topups|resolve`: our payments beside Stripe's. */
import { randomBytes } from "node:crypto";

import { type Command, InvalidArgumentError } from "commander";

import { RECONCILE_DAYS_MAX, reconcile } from "#billing/reconcile.ts";
import type { Reconciliation } from "#billing/reconcile-run.ts";
import { resolvePayment } from "#billing/resolve.ts";
import { createStripe, describeStripeError } from "#billing/stripe.ts";
import { listTopups } from "#billing/topups.ts";
import { mils, usdText } from "#contract/mils.ts";
import { systemClock } from "#platform/clock.ts";
import { createLog } from "#platform/log.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withOperator } from "../operator.ts";
import { printJson, printTable } from "../print.ts";
import { UserError } from "../user-error.ts";
import { requireCustomer } from "./credits.ts";

const TOPUPS_LISTED_MAX = 1_000;

export function addBilling(program: Command): void {
  const billing = program.command("billing").description("top-ups by card, and whether Stripe and our books agree");
  billing
    .command("reconcile")
    .description("compare our top-ups with Stripe's lists and repair what a lost webhook missed")
    .option("--days <n>", "how far back", parseDays, RECONCILE_DAYS_MAX)
    .option("--dry-run", "change nothing, only say what would be repaired")
    .option("--json", "print JSON on stdout")
    .action(compare);
  billing
    .command("topups")
    .description("top-ups and what became of them, newest first")
    .option("--customer <customer>", "cus_… or an e-mail address")
    .option("--json", "print JSON on stdout")
    .action(list);
  withOperator(
    billing
      .command("resolve")
      .description("decide about a payment that could not be credited by itself")
      .argument("<payment>", "pi_…, as reconcile reports it")
      .requiredOption("--reason <text>", "why")
      .option("--credit-to <customer>", "credit what was paid to this customer; without it, nobody is credited")
      .option("--json", "print JSON on stdout"),
  ).action(resolve);
}

async function compare(options: { days: number; dryRun?: true; json?: true }): Promise<void> {
  const report = await withDatabase(async ({ db }, config) => {
    const stripe = createStripe(config);
    if (!stripe) throw new UserError("Stripe is not configured: set STRIPE_SECRET_KEY.");
    const parts = { db, stripe, clock: systemClock, log: createLog("cli", "silent") };
    return await reconcile(parts, { days: options.days, dryRun: options.dryRun === true }).catch((error: unknown) => {
      const known = describeStripeError(error);
      throw known === error ? error : new UserError(`Stripe could not be asked. ${messageOf(known)}`, { cause: known });
    });
  });
  if (options.json) printJson(report);
  else print(report);
  if (report.disagreements.length > 0) process.exitCode = 1;
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function print({ since, dry_run, looked_at, missed_events, repaired, disagreements }: Reconciliation): void {
  const { events, sessions, refunds, disputes, credits } = looked_at;
  console.log(
    `Since ${since.toISOString()}: ${events} events (${missed_events} that no webhook brought), ${sessions} sessions, ` +
      `${refunds} refunds, ${disputes} disputes at Stripe; ${credits} payments credited here.`,
  );
  for (const line of repaired) console.log(`${dry_run ? "would repair" : "repaired"}  ${line}`);
  for (const { kind, id, message } of disagreements) console.log(`${kind}  ${id}: ${message}`);
  if (disagreements.length === 0) console.log(repaired.length === 0 ? "Both agree." : "Nothing else disagrees.");
}

async function list(options: { customer?: string; json?: true }): Promise<void> {
  const topups = await withDatabase(async ({ db }) => {
    const customer_id = options.customer === undefined ? null : await requireCustomer(db, options.customer);
    return await listTopups(db, customer_id, TOPUPS_LISTED_MAX);
  });
  if (options.json) {
    printJson(topups);
    return;
  }
  printTable(
    ["CREATED", "TOP-UP", "CUSTOMER", "USD", "STATE", "PAYMENT", "CREDITED", "TAKEN BACK", "PROBLEM"],
    topups.map((t) => [
      t.created_at.toISOString(),
      t.id,
      t.customer_id,
      (t.amount_cents / 100).toFixed(2),
      t.state,
      t.payment_id ?? "-",
      usdText(mils(t.credited_mils ?? 0n)),
      usdText(mils(t.clawed_back_mils ?? 0n)),
      t.problem ?? "",
    ]),
  );
}

async function resolve(
  payment_id: string,
  options: { reason: string; creditTo?: string; operator?: string; json?: true },
): Promise<void> {
  const operator = operatorOf(options);
  const outcome = await withDatabase(async ({ db }) => {
    const credit_to = options.creditTo === undefined ? null : await requireCustomer(db, options.creditTo);
    return await resolvePayment(db, { payment_id, credit_to, operator, reason: options.reason }, randomBytes);
  });
  if (options.json) printJson({ payment_id, outcome });
  else console.log(`${payment_id}: ${outcome}.`);
}

function parseDays(text: string): number {
  const days = Number(text);
  if (/^\d+$/.test(text) && days >= 1 && days <= RECONCILE_DAYS_MAX) return days;
  throw new InvalidArgumentError(`expected 1 to ${RECONCILE_DAYS_MAX}; Stripe keeps events for that long`);
}
