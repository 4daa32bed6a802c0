/** The daily verification of the whole ledger, by whoever leads. What it finds is logged, recorded, and shown as metrics. */
import { lastCheckAgeMs, recordCheck } from "#ledger/checks.ts";
import { auditLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";

import { type Loop, startLoop } from "#platform/loop.ts";

const VERIFY_EVERY_MS = 24 * 3_600_000;
/** How soon a leader notices that the last verification, perhaps another's, is a day old. */
const LOOK_EVERY_MS = 10 * 60_000;
const PROBLEMS_LOGGED_MAX = 5;

export interface AuditTimerOptions {
  readonly db: Database;
  readonly log: Log;
}

export function startAudit({ db, log }: AuditTimerOptions): Loop {
  return startLoop({ name: "audit", everyMs: LOOK_EVERY_MS, log, run: (signal) => auditWhenDue(db, log, signal) });
}

/** Reads a snapshot, a page at a time, and stops between two pages when told to. */
async function auditWhenDue(db: Database, log: Log, signal: AbortSignal): Promise<void> {
  const age = await lastCheckAgeMs(db);
  if (age !== null && age < VERIFY_EVERY_MS) return;
  const { checked, problems } = await auditLedger(db, { signal });
  signal.throwIfAborted();
  await recordCheck(db, problems);
  if (problems.length === 0) {
    log.info({ checked }, "the books balance");
    return;
  }
  const shown = problems.slice(0, PROBLEMS_LOGGED_MAX);
  log.error({ checked, count: problems.length, problems: shown }, "the books do not balance; see `ledger verify`");
}
