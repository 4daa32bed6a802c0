/** The database rights of the processes: what a stolen or misled gateway cannot do, whatever SQL it is made to send. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { createPostgresRateLimiter, sweepRateBuckets } from "#gateway/rate-limiter-postgres.ts";
import { startUsageNotes } from "#keys/usage.ts";
import { readBooks } from "#ledger/books.ts";
import { recordCheck } from "#ledger/checks.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { systemClock } from "#platform/clock.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { grantRights, isOwner, missingRights, type Part, PARTS } from "#platform/roles.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { markDispatched } from "#rollouts/dispatch.ts";
import { tryLead } from "#rollouts/leader.ts";
import { deleteDeadLeases, readAbandoned } from "#rollouts/leases.ts";
import { settle } from "#rollouts/settle.ts";
import { deleteOldIdempotencyKeys, nextOverdue, postpone, readExpired } from "#rollouts/sweep.ts";
import { accept, dispatch, failed, newCustomer, newRollout, owe } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let owner: Database;
const as = {} as Record<Part, Database>; // filled below, before any test

beforeAll(async () => {
  database = await createTestDatabase();
  owner = database.db;
  for (const part of PARTS) as[part] = database.as(part);
  const key = await newCustomer(owner, mils(10_000));
  await acceptRollout(owner, newRollout(key));
  await owner.query(
    "INSERT INTO operator_actions (operator, action, reason) VALUES ('somebody', 'credits adjust', 'a test')",
  );
  await owner.query(
    "INSERT INTO stripe_events (id, type, created_at, outcome) VALUES ('evt_1', 'x', now(), 'nothing')",
  );
  await owner.query("INSERT INTO shared_secrets (name, value) VALUES ('gateway database role', 'secret')");
});
afterAll(() => database.drop());

/** A column that somebody would like to rewrite, and the trigger that stops even the owner. */
const APPEND_ONLY = [
  ["ledger_entries", "detail", "ledger_append_only"],
  ["prices", "note", "prices_append_only"],
  ["operator_actions", "reason", "operator_actions_append_only"],
  ["stripe_events", "outcome", null],
] as const;

const REFUSED = /permission denied|must be owner|only roles with/i;

describe.for([...PARTS])("the %s's role", (part) => {
  /** What the database says to that statement; it must not do it. */
  const answerTo = async (statement: string): Promise<string> => {
    const done = as[part].query(statement).then(
      () => "done",
      (error: unknown) => String(error),
    );
    return `${statement}: ${await done}`;
  };

  test.for(APPEND_ONLY)(
    "cannot change, remove or replace a row of %s, nor what guards it",
    async ([table, column, trigger]) => {
      for (const statement of [
        `UPDATE ${table} SET ${column} = 'other'`,
        `UPDATE ${table} SET ${column} = ${column} WHERE false`,
        `DELETE FROM ${table}`,
        `DELETE FROM ${table} WHERE false`,
        `TRUNCATE ${table}`,
        `TRUNCATE ${table} CASCADE`,
        `ALTER TABLE ${table} DISABLE TRIGGER ALL`,
        `ALTER TABLE ${table} ADD COLUMN other text`,
        `ALTER TABLE ${table} OWNER TO test_${part}`,
        `ALTER TABLE ${table} RENAME TO other`,
        `DROP TABLE ${table} CASCADE`,
        `CREATE TRIGGER other BEFORE INSERT ON ${table} FOR EACH ROW EXECUTE FUNCTION refuse_change()`,
        `CREATE RULE other AS ON INSERT TO ${table} DO INSTEAD NOTHING`,
        `CREATE INDEX other ON ${table} (${column})`,
        ...(trigger === null
          ? []
          : [`ALTER TABLE ${table} DISABLE TRIGGER ${trigger}`, `DROP TRIGGER ${trigger} ON ${table}`]),
      ]) {
        expect(await answerTo(statement)).toMatch(REFUSED);
      }
    },
  );

  test("cannot become more than it is", async () => {
    for (const statement of [
      "SET ROLE postgres",
      "SET SESSION AUTHORIZATION postgres",
      "SET session_replication_role = replica",
      `ALTER ROLE test_${part} SUPERUSER`,
      `ALTER ROLE test_${part} BYPASSRLS`,
      "CREATE ROLE other LOGIN",
      `GRANT postgres TO test_${part}`,
      ...PARTS.filter((other) => other !== part).map((other) => `SET ROLE test_${other}`),
      ...PARTS.filter((other) => other !== part).map((other) => `ALTER ROLE test_${other} PASSWORD 'mine'`),
    ]) {
      expect(await answerTo(statement)).toMatch(REFUSED);
    }
    expect(await isOwner(as[part])).toBe(false);
  });

  test("cannot put anything of its own where other people's statements would find it", async () => {
    for (const statement of [
      "CREATE TABLE mine (id integer)",
      "CREATE SCHEMA mine",
      "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
      "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
      `CREATE OR REPLACE FUNCTION price_in_force(customer text, at timestamptz) RETURNS integer LANGUAGE sql STABLE
         AS 'SELECT 0'`,
      "DROP FUNCTION refuse_change() CASCADE",
      "ALTER TABLE shared_secrets DISABLE ROW LEVEL SECURITY",
      "DROP POLICY shared_secrets_of_gateways ON shared_secrets",
      "COPY ledger_entries TO '/tmp/entries'",
      "COPY ledger_entries FROM PROGRAM 'true'",
      "INSERT INTO schema_migrations (name, run_on) VALUES ('0003_other', now())",
    ]) {
      expect(await answerTo(statement)).toMatch(REFUSED);
    }
  });

  test("can neither set a price nor speak for an operator", async () => {
    expect(
      await answerTo("INSERT INTO prices (mils_per_frame, effective_from, note) VALUES (0, now(), 'free')"),
    ).toMatch(REFUSED);
    expect(await answerTo("INSERT INTO operator_actions (operator, action, reason) VALUES ('me', 'x', 'y')")).toMatch(
      REFUSED,
    );
  });

  test("cannot move a debit to another customer, nor change what a rollout cost", async () => {
    expect(await answerTo("UPDATE accounts SET customer_id = 'cus_other'")).toMatch(REFUSED);
    expect(await answerTo("UPDATE rollouts SET charge_mils = 0")).toMatch(REFUSED);
    expect(await answerTo("UPDATE rollouts SET customer_id = 'cus_other'")).toMatch(REFUSED);
    expect(await answerTo("DELETE FROM rollouts")).toMatch(REFUSED);
    expect(await answerTo("DELETE FROM accounts")).toMatch(REFUSED);
    expect(await answerTo("DELETE FROM customers")).toMatch(REFUSED);
  });
});

test("the gateway cannot give a key another customer, hash or lifetime", async () => {
  for (const column of ["customer_id", "key_hash", "id"]) {
    await expect(as.gateway.query(`UPDATE api_keys SET ${column} = NULL`)).rejects.toThrow("permission denied");
  }
  await expect(as.gateway.query("DELETE FROM api_keys")).rejects.toThrow("permission denied");
});

test.for(["settlement", "scheduler"] as const)("the %s's role sees neither keys nor secrets", async (part) => {
  for (const table of ["api_keys", "api_key_usage", "shared_secrets"]) {
    await expect(as[part].query(`SELECT * FROM ${table}`)).rejects.toThrow("permission denied");
  }
});

test("the settlement's role sees no customer, no payment and no statement", async () => {
  for (const table of ["customers", "payments", "topups", "stripe_events", "operator_actions", "ledger_entries"]) {
    await expect(as.settlement.query(`SELECT * FROM ${table}`)).rejects.toThrow("permission denied");
  }
});

test("the notifier's role, which talks to servers of strangers, sees no key and no money, and changes no work", async () => {
  for (const table of [
    "customers",
    "api_keys",
    "accounts",
    "ledger_entries",
    "payments",
    "topups",
    "idempotency_keys",
  ]) {
    await expect(as.notifier.query(`SELECT FROM ${table}`)).rejects.toThrow("permission denied");
  }
  for (const statement of [
    "UPDATE rollouts SET status = 'succeeded'",
    "UPDATE datasets SET state = 'running'",
    "UPDATE dataset_rows SET state = 'pending'",
    "UPDATE webhook_endpoints SET url = 'https://elsewhere.example.com'",
    "UPDATE webhook_deliveries SET url = 'https://elsewhere.example.com'",
    "INSERT INTO webhook_deliveries (customer_id, url, event) VALUES ('cus_other', 'https://x.example.com', 'x')",
    "SELECT source FROM dataset_rows",
  ]) {
    await expect(as.notifier.query(statement)).rejects.toThrow("permission denied");
  }
});

test("the gateway reads the secret that signs its links, and nobody's password", async () => {
  await as.gateway.query("INSERT INTO shared_secrets (name, value) VALUES ('video_url', 'signs')");
  const names = await as.gateway.query<{ name: string }>("SELECT name FROM shared_secrets");
  expect(names).toEqual([{ name: "video_url" }]);
  await expect(
    as.gateway.query("INSERT INTO shared_secrets (name, value) VALUES ('scheduler database role', 'mine')"),
  ).rejects.toThrow("row-level security");
});

test("a rollout is paid by the gateway's role and settled by the settlement's, its refund paying a debt first", async () => {
  const key = await newCustomer(owner, mils(245));
  const { rollout } = await acceptRollout(as.gateway, newRollout(key));
  await owe(owner, key.customer_id, 1);
  await dispatch(as.scheduler, rollout.id);
  expect(await settle(as.settlement, rollout.id, 1, failed())).toMatchObject({ settled: true });

  const accounts = await owner.query(
    "SELECT account, balance_mils FROM accounts WHERE customer_id = $1 ORDER BY account",
    [key.customer_id],
  );
  expect(accounts).toEqual([
    { account: "balance", balance_mils: 145n },
    { account: "debt", balance_mils: 0n },
  ]);
});

test("the scheduler's role can verify the books", async () => {
  expect(await verifyLedger(as.scheduler)).toEqual([]);
});

test("the scheduler's role can do all of the sweep's, the janitor's and the money watch's statements", async () => {
  const { scheduler } = as;
  const key = await newCustomer(owner, mils(10_000));
  const { id } = await accept(owner, key);
  const leadership = await tryLead(scheduler, "test");
  const epoch = leadership?.epoch ?? 0n;
  expect(await markDispatched(scheduler, epoch, [id])).toHaveLength(1);
  const far = new Date(Date.now() + 3_600_000);
  await scheduler.transaction(async (tx) => {
    const overdue = await nextOverdue(tx, epoch, far);
    expect(overdue?.id).toBe(id);
    await postpone(tx, id, far);
  });
  await readExpired(scheduler, far, 10);
  await readAbandoned(scheduler, 1_000, 10);
  await deleteDeadLeases(scheduler, 0);
  await deleteOldIdempotencyKeys(scheduler, epoch, far, 10);
  await settle(scheduler, id, 1, failed());
  await recordCheck(scheduler, []);
  expect(await readBooks(scheduler)).toMatchObject({ problems: 0 });
  await leadership?.resign();
});

test("the gateway's role can note when a key was used, and count in buckets that several gateways share", async () => {
  const key = await newCustomer(owner);
  const usage = startUsageNotes({ db: as.gateway, clock: systemClock, log: silentLog, flushEveryMs: 60_000 });
  usage.note(key.key_id);
  await usage.stop();
  const used = await owner.query("SELECT FROM api_key_usage WHERE key_id = $1", [key.key_id]);
  expect(used).toHaveLength(1);

  const limiter = createPostgresRateLimiter({ db: as.gateway, log: silentLog });
  const policy = { per_second: 1, burst: 1 };
  expect(await limiter.take("a key", policy)).toMatchObject({ allowed: true });
  expect(await limiter.take("a key", policy)).toMatchObject({ allowed: false });
  await sweepRateBuckets(as.gateway);
  await limiter.stop();
});

test.for([...PARTS])("the %s's role lacks nothing, and without a right it is named", async (part) => {
  expect(await missingRights(as[part], part)).toEqual([]);
  await owner.query(`REVOKE UPDATE (head_hash) ON accounts FROM test_${part}`);
  await owner.query(`REVOKE SELECT ON schema_migrations FROM test_${part}`);
  // The one process that has nothing to do with money had nothing of accounts to lose.
  const onAccounts = part === "notifier" ? [] : ["UPDATE on accounts"];
  expect((await missingRights(as[part], part)).sort()).toEqual(["SELECT on schema_migrations", ...onAccounts]);
  await owner.transaction((tx) => grantRights(tx, `test_${part}`, part));
  expect(await missingRights(as[part], part)).toEqual([]);
});

test("granting takes back what an older version granted", async () => {
  await owner.query("GRANT UPDATE ON ledger_entries TO test_gateway");
  await owner.query("GRANT UPDATE (note) ON prices TO test_gateway");
  await owner.transaction((tx) => grantRights(tx, "test_gateway", "gateway"));
  await expect(as.gateway.query("UPDATE ledger_entries SET detail = ''")).rejects.toThrow("permission denied");
  await expect(as.gateway.query("UPDATE prices SET note = ''")).rejects.toThrow("permission denied");
});

test("granting from many processes at once works", async () => {
  const others = Array.from({ length: 4 }, () => createDatabase({ url: database.url, log: silentLog, poolMax: 2 }));
  await Promise.all(
    others.flatMap((db) => PARTS.map((part) => db.transaction((tx) => grantRights(tx, `test_${part}`, part)))),
  );
  for (const part of PARTS) expect(await missingRights(as[part], part)).toEqual([]);
  for (const db of others) await db.stop();
});
