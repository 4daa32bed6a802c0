/** `dream-engine ledger verify|totals`: whether the books balance, and what moved on which day. */
import cliProgress from "cli-progress";
import { type Command, InvalidArgumentError } from "commander";

import { usdText } from "#contract/mils.ts";
import { findCustomer } from "#keys/customers.ts";
import { recordCheck } from "#ledger/checks.ts";
import { dailyTotals } from "#ledger/totals.ts";
import { type Audit, auditLedger, PROBLEMS_MAX } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";

import { withDatabase } from "../context.ts";
import { printJson, printTable } from "../print.ts";
import { UserError } from "../user-error.ts";

const DAYS_DEFAULT = 30;
const DAYS_MAX = 3_660;

export function addLedger(program: Command): void {
  const ledger = program.command("ledger").description("the books: whether they balance, and what moved");
  ledger
    .command("verify")
    .description("recompute every chain, sum, rollout, refund and payment; exit code 1 when anything disagrees")
    .option("--customer <id|email>", "this customer alone")
    .option("--json", "print JSON on stdout")
    .action(verify);
  ledger
    .command("totals")
    .description("daily totals by kind of entry, days in UTC")
    .option("--days <n>", "how many days, the present one included", parseDays, DAYS_DEFAULT)
    .option("--json", "print JSON on stdout")
    .action(totals);
}

async function verify({ customer, json }: { customer?: string; json?: true }): Promise<void> {
  const { checked, problems } = await withDatabase(async ({ db }) => {
    const id = customer === undefined ? undefined : await findCustomer(db, customer);
    if (id === null) throw new UserError(`There is no customer ${customer}.`);
    const audit = await auditWithBar(db, id, json !== true && process.stderr.isTTY);
    // A part says nothing of the whole, and the metrics tell when the whole was last verified.
    if (id === undefined) await recordCheck(db, audit.problems);
    return audit;
  });
  if (problems.length > 0) process.exitCode = 1;
  if (json) {
    printJson({ ok: problems.length === 0, checked, problems });
    return;
  }
  for (const problem of problems) console.log(problem);
  const counts = Object.entries(checked).map(([what, count]) => `${what.replaceAll("_", " ")} ${count}`);
  const verdict = problems.length === 0 ? "The books balance" : `${countOf(problems)}; keep the database as it is`;
  console.log(`${verdict}: checked ${counts.join(", ")}.`);
}

/** The audit ends at so many. */
function countOf({ length }: readonly string[]): string {
  if (length === PROBLEMS_MAX) return `${length} disagreements or more`;
  return length === 1 ? "1 disagreement" : `${length} disagreements`;
}

async function auditWithBar(db: Database, customer: string | undefined, watched: boolean): Promise<Audit> {
  if (!watched) return auditLedger(db, { customer });
  const bar = new cliProgress.SingleBar(
    {
      format: "  verifying {bar} {percentage} % · {eta_formatted} left",
      clearOnComplete: true,
      stream: process.stderr,
    },
    cliProgress.Presets.shades_classic,
  );
  bar.start(1, 0);
  try {
    return await auditLedger(db, {
      customer,
      onProgress: (done, total) => {
        bar.setTotal(Math.max(1, total));
        bar.update(Math.min(done, total));
      },
    });
  } finally {
    bar.stop();
  }
}

async function totals({ days, json }: { days: number; json?: true }): Promise<void> {
  const rows = await withDatabase(({ db }) => dailyTotals(db, days, Date.now()));
  if (json) {
    printJson(rows.map((row) => ({ ...row, usd: usdText(row.mils) })));
    return;
  }
  printTable(
    ["DAY (UTC)", "ACCOUNT", "KIND", "ENTRIES", "MILS", "USD"],
    rows.map(({ day, account, kind, entries, mils }) => [
      day,
      account,
      kind,
      entries.toString(),
      mils.toString(),
      usdText(mils),
    ]),
  );
}

function parseDays(text: string): number {
  const days = Number(text);
  if (/^\d{1,4}$/.test(text) && days >= 1 && days <= DAYS_MAX) return days;
  throw new InvalidArgumentError(`expected a whole number from 1 to ${DAYS_MAX}`);
}
