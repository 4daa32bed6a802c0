/** What the auditor says after somebody with every right changed the tables by hand; undone afterwards. */
import { verifyLedger } from "#ledger/verify.ts";
import type { Database, Sql } from "#platform/database.ts";

/** Runs `tamper` as a superuser who switches the triggers off, audits, and undoes it. */
export async function auditAfter(db: Database, tamper: (tx: Sql) => Promise<unknown>): Promise<readonly string[]> {
  const undo = new Error("undo");
  let problems: readonly string[] = [];
  await db
    .transaction(async (tx) => {
      await tx.query("SET LOCAL session_replication_role = replica");
      await tamper(tx);
      // The auditor's own transaction becomes this one: what is not committed is visible here only.
      problems = await verifyLedger({ transaction: (run) => run(inside(tx)) });
      throw undo;
    })
    .catch((error: unknown) => {
      if (error !== undo) throw error;
    });
  return problems;
}

const inside = (tx: Sql): Sql => ({
  query: (text, params) => (text.startsWith("SET TRANSACTION") ? Promise.resolve([]) : tx.query(text, params)),
});

/** Statements separated by "; "; `$1` is the customer. */
export function tamperWith(statements: string, customer: string): (tx: Sql) => Promise<void> {
  return async (tx) => {
    for (const statement of statements.split("; ")) {
      await tx.query(statement, statement.includes("$1") ? [customer] : []);
    }
  };
}
