/**
 * A database that fails as real ones do, when it is told to: connections that are cut around a commit (the proxy),
 * serialization failures and timeouts that a trigger raises, statements that wait for a lock until they time out.
 */
import type { Database } from "#platform/database.ts";
import type { Fault, PgProxy } from "#test/support/pg-proxy.ts";

export type DatabaseFault =
  /** The n-th command from now on, or the commit. */
  | { readonly kind: "connection"; readonly at: number | "commit"; readonly fault: Fault }
  /** So many writes of a ledger entry fail, where they are made or at the commit. */
  | { readonly kind: "error"; readonly at: "insert" | "commit"; readonly sqlstate: string; readonly times: number }
  /** The account is locked by somebody who does not let go before the statement times out. */
  | { readonly kind: "locked" };

/** Once per database, before any history. A sequence counts, because a rollback does not take its steps back. */
export async function installErrorTrigger(db: Database): Promise<void> {
  await db.query(`
    CREATE TABLE test_faults (customer_id text, at text, sqlstate text, sequence text, until bigint);
    CREATE FUNCTION test_fail() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE fault test_faults;
    BEGIN
      SELECT * INTO fault FROM test_faults WHERE customer_id = NEW.customer_id AND at = TG_ARGV[0];
      IF FOUND AND nextval(fault.sequence) <= fault.until THEN
        RAISE EXCEPTION 'injected: %', fault.sqlstate USING ERRCODE = fault.sqlstate;
      END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER test_fail_insert BEFORE INSERT ON ledger_entries FOR EACH ROW EXECUTE FUNCTION test_fail('insert');
    CREATE CONSTRAINT TRIGGER test_fail_commit AFTER INSERT ON ledger_entries DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION test_fail('commit')`);
}

export interface FaultyDatabase {
  readonly quiet: Database;
  readonly proxy: PgProxy;
  /** Of this history alone. */
  readonly sequence: string;
}

/** Runs `work` with the fault in place for these customers; afterwards it is gone and the server has noticed every cut. */
export async function withFault<T>(
  { quiet, proxy, sequence }: FaultyDatabase,
  fault: DatabaseFault | null,
  customers: readonly string[],
  work: () => Promise<T>,
): Promise<T> {
  if (fault === null) return await work();
  if (fault.kind === "locked") return await whileLocked(quiet, customers, work);
  if (fault.kind === "connection") {
    let commands = 0;
    proxy.faultOf = ({ text }) => {
      const hit = fault.at === "commit" ? /^(COMMIT|\s*WITH)/.test(text) : commands++ === fault.at;
      if (!hit) return null;
      proxy.faultOf = () => null; // once
      return fault.fault;
    };
    try {
      return await work();
    } finally {
      proxy.faultOf = () => null;
      await proxy.untilServerNoticed(quiet);
    }
  }
  await quiet.query(
    `WITH counted AS MATERIALIZED (SELECT nextval($4::text::regclass) AS n)
     INSERT INTO test_faults (customer_id, at, sqlstate, sequence, until)
     SELECT customer, $2, $3, $4::text, n + $5::int FROM counted, unnest($1::text[]) customer`,
    [customers, fault.at, fault.sqlstate, sequence, fault.times],
  );
  try {
    return await work();
  } finally {
    await quiet.query(`DELETE FROM test_faults WHERE sequence = $1`, [sequence]);
  }
}

async function whileLocked<T>(db: Database, customers: readonly string[], work: () => Promise<T>): Promise<T> {
  let result: Promise<T> | undefined;
  await db.transaction(async (tx) => {
    await tx.query(`SELECT FROM accounts WHERE customer_id = ANY ($1) AND account = 'balance' FOR UPDATE`, [customers]);
    result = work();
    await result.catch(() => undefined); // told below
  });
  if (!result) throw new Error("the work was not begun");
  return await result;
}
