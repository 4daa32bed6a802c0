/**
 * Promises 1 and 2, attacked with random histories on a database that fails: no mil lost or minted, nothing charged or
 * credited twice, no key that works after its end. `npm test` runs 1,000 histories, PROPERTY=long ten times as many.
 */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { auditLedger } from "#ledger/verify.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import type { NewRollout } from "#rollouts/rollout.ts";
import { createAcceptor } from "#rollouts/acceptor.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { type PgProxy, startPgProxy } from "#test/support/pg-proxy.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

import { MADE_UP, type SystemParts } from "./auditor-system.ts";
import { checkConcurrent } from "./concurrent-check.ts";
import { installErrorTrigger } from "./database-faults.ts";
import { newRolloutId } from "#contract/ids.ts";
import { assertHistories, concurrentHistories, sequentialHistories } from "./histories.ts";
import { checkSequential } from "./sequential-check.ts";

const TIMES = process.env["PROPERTY"] === "long" ? 10 : 1;
const SEQUENTIAL_RUNS = 400 * TIMES;
const CONCURRENT_RUNS = 600 * TIMES;
const LANES = 6;
/** Of the statements that meet a lock; healthy ones take a hundredth of it. */
const STATEMENT_TIMEOUT_MS = 100;

interface Lane extends SystemParts {
  readonly proxy: PgProxy;
  readonly sequence: string;
}

let database: TestDatabase;
let leader: Leadership;
let lanes: Lane[];
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  await installErrorTrigger(database.db);
  const leadership = await tryLead(database.db, "test");
  if (!leadership) throw new Error("nobody else is there to lead");
  leader = leadership;
  lanes = await Promise.all(Array.from({ length: LANES }, (_, index) => openLane(index)));
});
afterAll(async () => {
  for (const { db, proxy } of lanes) {
    await db.stop();
    await proxy.stop();
  }
  await leader.resign();
  await database.drop();
});

/** What `ledger verify` finds, but for the clawbacks of the histories: nobody made the payments that they name. */
async function disagreements(): Promise<string[]> {
  const { problems } = await auditLedger(database.db, { problemsMax: Infinity });
  return problems.filter((problem) => !problem.includes(MADE_UP));
}

async function openLane(index: number, { db: quiet, url } = database, epoch = leader.epoch): Promise<Lane> {
  const sequence = `lane_${index}`;
  await quiet.query(`CREATE SEQUENCE ${sequence}`);
  const proxy = await startPgProxy(url);
  const db: Database = createDatabase({ url: proxy.url, log: silentLog, poolMax: 8 });
  db.pool.options.statement_timeout = STATEMENT_TIMEOUT_MS;
  // As the gateway does, and one by one.
  const acceptor = createAcceptor(db);
  const accept = index % 3 === 0 ? (r: NewRollout) => acceptRollout(db, r) : (r: NewRollout) => acceptor.accept(r);
  return { db, quiet, proxy, sequence, epoch, accept };
}

test(
  `${SEQUENTIAL_RUNS} histories, one step after the other: every answer and all books are the model's`,
  async () => {
    await assertHistories({ histories: sequentialHistories, runs: SEQUENTIAL_RUNS, lanes, check: checkSequential });
    expect(await disagreements()).toEqual([]);
  },
  300_000 * TIMES,
);

test(
  `${CONCURRENT_RUNS} histories of many things at once: what was answered explains the books`,
  async () => {
    await assertHistories({ histories: concurrentHistories, runs: CONCURRENT_RUNS, lanes, check: checkConcurrent });
    expect(await disagreements()).toEqual([]);
  },
  300_000 * TIMES,
);

const audit = (lane: Lane): Promise<void> =>
  assertHistories({
    histories: sequentialHistories,
    runs: 300,
    lanes: [lane],
    check: checkSequential,
    endOnFailure: true,
  });

/** An auditor that finds nothing may be blind: each of these systems is wrong in one way. */
describe("the auditor notices", () => {
  test("a debit that is blindly repeated when its answer got lost", async () => {
    const [lane] = lanes;
    if (!lane) throw new Error("there is a lane");
    const accept = (r: NewRollout) =>
      acceptRollout(lane.db, r).catch((error: unknown) => {
        if (!(error instanceof Error) || !error.message.includes("Connection terminated")) throw error;
        return acceptRollout(lane.db, { ...r, id: newRolloutId(randomBytes) });
      });
    await expect(audit({ ...lane, accept })).rejects.toThrow("A history fails");
  }, 120_000);

  test.each([
    ["debt that nobody repays", `ALTER TABLE ledger_entries DISABLE TRIGGER ledger_repay_debt`],
    [
      "events that are taken in again and again",
      `CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
       CREATE TRIGGER forget BEFORE INSERT ON stripe_events FOR EACH ROW EXECUTE FUNCTION forget()`,
    ],
    [
      "a price that is not the customer's",
      `CREATE OR REPLACE FUNCTION price_in_force(customer text, at timestamptz) RETURNS integer LANGUAGE sql STABLE AS 'SELECT 5'`,
    ],
    [
      "keys that never expire",
      `CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.expires_at := NULL; RETURN NEW; END $$;
       CREATE TRIGGER never BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION never()`,
    ],
  ])(
    "%s",
    async (_what, sabotage) => {
      const broken = await createTestDatabase();
      await installErrorTrigger(broken.db);
      await broken.db.query(sabotage);
      const leadership = await tryLead(broken.db, "test");
      const lane = await openLane(0, broken, leadership?.epoch ?? 0n);
      try {
        await expect(audit(lane)).rejects.toThrow("A history fails");
      } finally {
        await lane.db.stop();
        await lane.proxy.stop();
        await leadership?.resign();
        await broken.drop();
      }
    },
    120_000,
  );
});
