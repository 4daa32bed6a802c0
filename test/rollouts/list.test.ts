/** What a page costs, at a hundred thousand rollouts: rows that it looks at, and the index that leads there. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { newDatasetId } from "#contract/ids.ts";
import { LIST_PAGE_MAX, QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { CreatedKey } from "#keys/keys.ts";
import type { Database, Sql } from "#platform/database.ts";
import { hasUndelivered, queuePosition } from "#rollouts/find.ts";
import { listRollouts, LOOKED_AT_MAX, type RolloutFilter } from "#rollouts/list.ts";
import { paceOf } from "#rollouts/pace.ts";
import { readOutdated } from "#rollouts/retention.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { ENDS_MAX, readBacklogByCustomer, readRefunds, readTraffic, sumRefunds } from "#rollouts/traffic.ts";
import { accept, copyRollouts, newCustomer } from "#test/support/ledger.ts";
import { expectNoScans, indexesOf, type PlanNode, plansOn, rowsRead } from "#test/support/plans.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

const ROLLOUTS = 100_000;
/** Each far within the time limit of a statement, on a machine that is busy, too. */
const COPIES_PER_STATEMENT = 10_000;
/** One in so many failed. */
const FAILED_EVERY = 40_000;

let database: TestDatabase;
let db: Database;
let key: CreatedKey;
const dataset = newDatasetId(randomBytes);

/** Columns of a copy: the dataset and row that `first` says, and its end. */
const ended = (first: string): string =>
  `${first}, CASE WHEN i % ${FAILED_EVERY} = 0 THEN 'failed' ELSE 'succeeded' END, 1, now() - i * interval '10 ms', 49,
   CASE WHEN i % ${FAILED_EVERY} = 0 THEN NULL ELSE '{"video_keys": []}'::jsonb END,
   CASE WHEN i % ${FAILED_EVERY} = 0 THEN 'lost' END, 0::bigint`;

/** The copies name what their original names; looking that up for each would take most of the time. */
const withoutReferences = (text: string, params: readonly unknown[]): Promise<unknown> =>
  db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query(text, params);
  });

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  key = await newCustomer(db);
  const other = await newCustomer(db);
  await db.query(
    `INSERT INTO datasets (id, customer_id, key_id, request_id, model, on_invalid, fingerprint)
     VALUES ($1, $2, $3, 'req_test', 'pusht-small', 'skip', sha256('x'))`,
    [dataset, key.customer_id, key.key_id],
  );
  const model = await accept(db, key, { model: "template" });
  // A night's worth: of a dataset, of the same customer outside of it, of somebody else, and in the backlog.
  const copies = async (of: CreatedKey, count: number, own: string): Promise<void> => {
    for (let from = 1; from <= count; from += COPIES_PER_STATEMENT) {
      await withoutReferences(
        `INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
                               params, fingerprint, price_mils_per_frame, charge_mils, deadline_at, created_at,
                               dataset_id, dataset_row, status, attempt, finished_at, frames_delivered, result,
                               error_code, refunded_mils)
         SELECT 'rollout_' || md5(concat($2::text, series.i, $3::text)), $2, $4, 'req_test', route, 'busy', 'bulk', k,
                frames, actions_per_candidate, params, fingerprint, price_mils_per_frame, charge_mils, deadline_at,
                now() - series.i * interval '10 ms', own.*
           FROM rollouts, generate_series($5::int, $6::int) AS series (i), LATERAL (SELECT ${own}) AS own
          WHERE id = $1`,
        [model.id, of.customer_id, own, of.key_id, from, Math.min(count, from + COPIES_PER_STATEMENT - 1)],
      );
    }
  };
  await copies(key, ROLLOUTS, ended(`'${dataset}'::text, i`));
  await copies(key, ROLLOUTS, ended("NULL::text, NULL::int"));
  await copies(
    other,
    20 * QUEUE_POSITION_MAX,
    "NULL::text, NULL::int, 'queued', 0, NULL::timestamptz, NULL::int, NULL::jsonb, NULL::text, 0::bigint",
  );
  await db.query("ANALYZE rollouts");
}, 180_000);
afterAll(() => database.drop());

const plansOf = (run: (sql: Sql) => Promise<unknown>): Promise<PlanNode[]> => plansOn(db, run);

const filterOf = (filter: Partial<RolloutFilter> = {}): RolloutFilter => ({
  customer_id: key.customer_id,
  dataset_id: null,
  statuses: null,
  model: null,
  created_after: null,
  created_before: null,
  ...filter,
});

describe.each([
  ["a customer's own", null, "rollouts_listed"],
  ["a dataset's", dataset, "rollouts_of_dataset"],
] as const)("a page of %s", (_, dataset_id, index) => {
  test("at the beginning and far in walks along its index and reads what it gives", async () => {
    const [middle] = await db.query<Pick<Rollout, "id">>(
      `SELECT id FROM rollouts WHERE customer_id = $1 AND dataset_id IS NOT DISTINCT FROM $2
        ORDER BY created_at DESC, id DESC OFFSET ${ROLLOUTS / 2} LIMIT 1`,
      [key.customer_id, dataset_id],
    );
    for (const after of [null, middle?.id ?? null]) {
      const nodes = await plansOf((sql) =>
        listRollouts(sql, filterOf({ dataset_id }), { after, limit: LIST_PAGE_MAX }),
      );
      expectNoScans(nodes);
      expect(indexesOf(nodes)).toContain(index);
      // And one for the cursor.
      expect(rowsRead(nodes)).toBeLessThanOrEqual(LIST_PAGE_MAX + 2);
    }
  });

  test("whose filter lets next to nothing through reads a bounded number of rows, and goes on where it was", async () => {
    const filter = filterOf({ dataset_id, statuses: ["failed"] });
    const found: string[] = [];
    let pages = 0;
    for (let after: Rollout["id"] | null | undefined; after !== null;) {
      const cursor = after ?? null;
      let next: Rollout["id"] | null = null;
      const nodes = await plansOf(async (sql) => {
        const page = await listRollouts(sql, filter, { after: cursor, limit: LIST_PAGE_MAX });
        found.push(...page.rollouts.map(({ id }) => id));
        ({ next } = page);
      });
      after = next;
      expectNoScans(nodes);
      // Once for the page and once for where the next one begins; the cursor, twice, and the last one given.
      expect(rowsRead(nodes)).toBeLessThanOrEqual(2 * LOOKED_AT_MAX + 3);
      pages += 1;
    }
    expect(new Set(found).size).toBe(Math.floor(ROLLOUTS / FAILED_EVERY));
    expect(found).toHaveLength(Math.floor(ROLLOUTS / FAILED_EVERY));
    expect(pages).toBeLessThanOrEqual(Math.ceil((ROLLOUTS + 1) / LOOKED_AT_MAX) + 1);
  });
});

test("pages of a filter at a bound that it hits in the middle neither lose nor repeat anything", async () => {
  const filter = filterOf({
    dataset_id: dataset,
    created_after: new Date(Date.now() - 4_000_000),
    statuses: ["failed"],
  });
  for (const lookedAtMax of [1_000, 39_999, 40_000, 40_001]) {
    const found: string[] = [];
    for (let after: Rollout["id"] | null = null; ;) {
      const page = await listRollouts(db, filter, { after, limit: 1, lookedAtMax });
      found.push(...page.rollouts.map(({ id }) => id));
      after = page.next;
      if (after === null) break;
    }
    expect(found).toHaveLength(2);
    expect(new Set(found).size).toBe(2);
  }
});

test("rows that come in while a page is read, and between pages, repeat nothing and hide nothing", async () => {
  const busy = await newCustomer(db);
  const { id: first } = await accept(db, busy);
  const TOTAL = 40;
  // Newest first: every fourth of them failed.
  await withoutReferences(
    `INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
                           params, fingerprint, price_mils_per_frame, charge_mils, deadline_at, created_at, status,
                           attempt, finished_at, frames_delivered, error_code, refunded_mils)
     SELECT 'rollout_' || md5(concat('between', i)), customer_id, key_id, 'req_test', route, model, lane, k, frames,
            actions_per_candidate, params, fingerprint, price_mils_per_frame, charge_mils, deadline_at,
            created_at - i * interval '10 ms', CASE i % 4 WHEN 0 THEN 'failed' ELSE 'cancelled' END, 1, now() - interval '1 day', 0,
            CASE i % 4 WHEN 0 THEN 'engine_failed' END, charge_mils
       FROM rollouts, generate_series(1, $2::int) AS series (i) WHERE id = $1`,
    [first, TOTAL],
  );
  /** Some newer than all others, some between them, as a slow transaction leaves them; each a microsecond apart. */
  let arrivals = 0;
  const arrive = async (): Promise<void> => {
    for (const offset of ["1 s", "1 s", "1 s", "-5 ms", "-105 ms", "-205 ms"]) {
      arrivals += 1;
      await withoutReferences(
        `INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
                               params, fingerprint, price_mils_per_frame, charge_mils, deadline_at, created_at, status,
                               attempt, finished_at, frames_delivered, refunded_mils)
         SELECT 'rollout_' || md5(concat('arrived', $2::int)), customer_id, key_id, 'req_test', route, model, lane, k,
                frames, actions_per_candidate, params, fingerprint, price_mils_per_frame, charge_mils, deadline_at,
                created_at + $3::interval + $2::int * interval '1 us', 'cancelled', 1, now() - interval '1 day', 0, charge_mils
           FROM rollouts WHERE id = $1`,
        [first, arrivals, offset],
      );
    }
  };
  const filter = filterOf({ customer_id: busy.customer_id, statuses: ["failed"] });
  const arriving: Sql = {
    async query<Row>(text: string, params?: readonly unknown[]) {
      const rows = await db.query<Row>(text, params);
      await arrive();
      return rows;
    },
  };
  for (const lookedAtMax of [7, 9, 16]) {
    const found: string[] = [];
    let pages = 0;
    for (let after: Rollout["id"] | null = null; ;) {
      const page = await listRollouts(arriving, filter, { after, limit: 3, lookedAtMax });
      found.push(...page.rollouts.map(({ id }) => id));
      after = page.next;
      pages += 1;
      if (after === null) break;
      if (pages > 100) throw new Error("the pages do not end");
    }
    expect(found).toHaveLength(TOTAL / 4);
    expect(new Set(found).size).toBe(TOTAL / 4);
    expect(pages).toBeGreaterThan(2);
  }
});

test("a time window begins where it begins, not at the newest", async () => {
  const before = new Date(Date.now() - 600_000);
  const nodes = await plansOf((sql) =>
    listRollouts(sql, filterOf({ created_before: before }), { after: null, limit: 20 }),
  );
  expectNoScans(nodes);
  expect(rowsRead(nodes)).toBeLessThanOrEqual(22);
});

test("a place in a long queue is counted up to a bound, along the backlog's index", async () => {
  const end = async (order: "ASC" | "DESC"): Promise<Pick<Rollout, "id" | "model"> | undefined> => {
    const [row] = await db.query<Pick<Rollout, "id" | "model">>(
      `SELECT id, model FROM rollouts WHERE model = 'busy' AND status = 'queued'
        ORDER BY created_at ${order}, id ${order} LIMIT 1`,
    );
    return row;
  };
  const [first, last] = [await end("ASC"), await end("DESC")];
  if (!first || !last) throw new Error("no backlog");
  expect(await queuePosition(db, first)).toBe(1);
  expect(await queuePosition(db, last)).toBe(QUEUE_POSITION_MAX);
  const nodes = await plansOf((sql) => queuePosition(sql, last));
  // Customers are few here, and the few rows of each are numbered.
  const scans = nodes.filter((node) => node["Relation Name"] === "rollouts").map((node) => node["Node Type"]);
  expect(scans).not.toContain("Seq Scan");
  expect(indexesOf(nodes)).toContain("rollouts_backlog");
  expect(rowsRead(nodes)).toBeLessThanOrEqual(QUEUE_POSITION_MAX + 3);
});

test("what looks for undelivered videos, the pace and outdated files does not read a night's work", async () => {
  for (const run of [
    (sql: Sql) => hasUndelivered(sql, key.customer_id, new Date()),
    (sql: Sql) => readOutdated(sql, new Date(Date.now() - 3_600_000), 100),
  ]) {
    const nodes = await plansOf(run);
    expectNoScans(nodes);
    expect(rowsRead(nodes)).toBeLessThanOrEqual(100);
  }
  // Of one model among all that ended within a minute.
  const nodes = await plansOf((sql) => paceOf(sql, "busy"));
  expectNoScans(nodes);
  expect(rowsRead(nodes)).toBeLessThanOrEqual(501);
});

/** Rows of `rollouts` that it reads, by which indexes; never the whole table. */
const read = async (run: (sql: Sql) => Promise<unknown>): Promise<{ rows: number; indexes: string[] }> => {
  const nodes = await plansOf(run);
  const scans = nodes.filter((node) => node["Relation Name"] === "rollouts").map((node) => node["Node Type"]);
  expect(scans.length).toBeGreaterThan(0);
  expect(scans).not.toContain("Seq Scan");
  return { rows: rowsRead(nodes), indexes: indexesOf(nodes) };
};

describe("the operator's overview of a night's work", () => {
  const REFUNDED = 300;
  beforeAll(async () => {
    const { id } = await accept(db, key);
    await withoutReferences(
      copyRollouts(
        `jsonb_build_object('id', 'rollout_' || md5(concat('refunded', i)), 'status', 'failed', 'attempt', 1,
           'finished_at', now() - i * interval '1 min', 'frames_delivered', 0, 'error_code', 'lost', 'refunded_mils', r.charge_mils)`,
        `CROSS JOIN generate_series(1, ${REFUNDED}) AS series (i) WHERE r.id = $1`,
      ),
      [id],
    );
    await db.query("ANALYZE rollouts");
  });

  test("what came out of late reads the latest ends, and no more of them than it says", async () => {
    const { rows, indexes } = await read((sql) => readTraffic(sql));
    expect(indexes).toEqual(["rollouts_finished"]);
    expect(rows).toBe(ENDS_MAX);
    // Two hundred end in a second here: the window is as long as those that were read took, and the rate is of that time.
    const { window_s, rollouts_per_s } = await readTraffic(db);
    expect(window_s).toBeLessThan(300);
    expect(rollouts_per_s).toBeLessThan(300);
  });

  test("refunds among successes are found by an index of their own", async () => {
    const latest = await read((sql) => readRefunds(sql, 12));
    expect(latest).toEqual({ rows: 12, indexes: expect.arrayContaining(["rollouts_refunded"]) as string[] });
    const sums = await read((sql) => sumRefunds(sql));
    expect(sums.indexes).toEqual(["rollouts_refunded"]);
    expect(sums.rows).toBeLessThan(3 * REFUNDED);
  });

  test("who waits is counted up to a bound, without what has ended", async () => {
    const all = await read((sql) => readBacklogByCustomer(sql));
    expect(all.rows).toBeLessThan(1.1 * 20 * QUEUE_POSITION_MAX);
    expect((await read((sql) => readBacklogByCustomer(sql, 500))).rows).toBe(500);
  });
});
