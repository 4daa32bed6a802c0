/**
 * The part of the audit that looks at datasets: each try of a row is one rollout, by an id that is computed here again;
 * rows say what their rollouts cost, and the counters of a dataset what its rows say. Whether those rollouts were paid and
 * refunded rightly is audit/rollouts.ts.
 */
import type { RowState } from "#contract/datasets.ts";
import type { Sql } from "#platform/database.ts";

import { type AuditScope, pages } from "./pages.ts";

export async function* auditDatasets(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  for await (const dataset of datasets(tx, scope)) yield* auditDataset(tx, dataset, scope);
}

/** What a dataset says of its rows; the same is added up here. */
type Sums = Record<`rows_${RowState}`, number> &
  Record<"rows_total" | "rows_unmeasured", number> &
  Record<"frames_expected" | "frames_delivered" | "held_mils" | "charged_mils" | "refunded_mils", bigint>;

type Dataset = Sums & { readonly id: string; readonly customer_id: string };

interface Row {
  readonly n: number;
  readonly state: RowState;
  readonly try: number;
  readonly num_actions: number | null;
  readonly charged_mils: bigint;
  readonly refunded_mils: bigint;
  /** Whether the rollout that it names, if any, is that of its latest try. */
  readonly names_latest: boolean;
  /** Of the rollouts of its tries; of one that runs, what it holds. */
  readonly rollouts: number;
  readonly held: bigint;
  readonly charged: bigint;
  readonly refunded: bigint;
  readonly delivered: bigint;
  readonly latest_succeeded: boolean;
  /** Nothing of it was refunded. */
  readonly latest_paid_whole: boolean;
}

const NOTHING: Readonly<Sums> = {
  rows_total: 0,
  rows_invalid: 0,
  rows_pending: 0,
  rows_running: 0,
  rows_succeeded: 0,
  rows_failed: 0,
  rows_cancelled: 0,
  rows_expired: 0,
  rows_unmeasured: 0,
  frames_expected: 0n,
  frames_delivered: 0n,
  held_mils: 0n,
  charged_mils: 0n,
  refunded_mils: 0n,
};

async function* auditDataset(tx: Sql, dataset: Dataset, scope: AuditScope): AsyncGenerator<string> {
  const sums = { ...NOTHING };
  let tries = 0;
  for await (const row of rowsOf(tx, dataset)) {
    scope.checked("dataset_rows");
    yield* auditRow(dataset.id, row);
    tries += row.try;
    sums.rows_total += 1;
    sums[`rows_${row.state}`] += 1;
    sums.held_mils += row.held;
    sums.charged_mils += row.charged;
    sums.refunded_mils += row.refunded;
    sums.frames_delivered += row.delivered;
    if (row.state === "invalid") continue;
    if (row.num_actions === null) sums.rows_unmeasured += 1;
    else sums.frames_expected += BigInt(row.num_actions + 1);
  }
  for (const [name, sum] of Object.entries(sums)) {
    const said = dataset[name as keyof Sums]; // the keys of NOTHING
    if (said !== sum) yield `${dataset.id}: says ${name} ${said}, its rows make it ${sum}`;
  }
  const [of] = await tx.query<{ rollouts: bigint }>("SELECT count(*) AS rollouts FROM rollouts WHERE dataset_id = $1", [
    dataset.id,
  ]);
  if (of?.rollouts !== BigInt(tries)) {
    yield `${dataset.id}: ${of?.rollouts} rollouts are of it, its rows were tried ${tries} times`;
  }
}

function* auditRow(id: string, row: Row): Generator<string> {
  const at = `${id} row ${row.n}`;
  if (row.rollouts !== row.try)
    yield `${at}: was tried ${row.try} times, and ${row.rollouts} rollouts are of these tries`;
  if (!row.names_latest) yield `${at}: names a rollout that is not of its latest try`;
  if (row.charged_mils !== row.charged || row.refunded_mils !== row.refunded) {
    yield `${at}: says ${row.charged_mils} mils charged and ${row.refunded_mils} refunded, its rollouts ${row.charged} and ${row.refunded}`;
  }
  if (row.state === "succeeded" && !row.latest_succeeded) yield `${at}: succeeded, and its rollout did not`;
  if (row.latest_paid_whole && row.state !== "succeeded" && row.state !== "running") {
    yield `${at}: is ${row.state}, and its rollout succeeded and was paid for`;
  }
}

function datasets(tx: Sql, { customer }: AuditScope): AsyncGenerator<Dataset> {
  return pages<Dataset>((after, limit) =>
    tx.query(
      `SELECT id, customer_id, ${Object.keys(NOTHING).join(", ")}
         FROM datasets WHERE id > $1 AND ($2::text IS NULL OR customer_id = $2) ORDER BY id LIMIT $3`,
      [after?.id ?? "", customer, limit],
    ),
  );
}

/** Stated again here, as everything that the audit relies on: one id, and so one charge, for one try of one row. */
const idOfTry = (n: string): string =>
  `'rollout_' || left(encode(sha256(convert_to(concat_ws(E'\\n', $1::text, d.n, ${n}), 'UTF8')), 'hex'), 32)`;

function rowsOf(tx: Sql, { id, customer_id }: Dataset): AsyncGenerator<Row> {
  return pages<Row>((after, limit) =>
    tx.query(
      `SELECT d.n, d.state, d.try, d.num_actions, d.charged_mils, d.refunded_mils,
              coalesce(d.rollout_id = ${idOfTry("d.try")}, d.state <> 'running') AS names_latest, r.*
         FROM (SELECT * FROM dataset_rows WHERE dataset_id = $1 AND n > $3 ORDER BY n LIMIT $4) d
        CROSS JOIN LATERAL (
          SELECT count(*)::int AS rollouts,
                 coalesce(sum(charge_mils) FILTER (WHERE runs), 0)::bigint AS held,
                 coalesce(sum(charge_mils) FILTER (WHERE NOT runs), 0)::bigint AS charged,
                 coalesce(sum(refunded_mils) FILTER (WHERE NOT runs), 0)::bigint AS refunded,
                 coalesce(sum(frames_delivered) FILTER (WHERE NOT runs), 0)::bigint AS delivered,
                 coalesce(bool_or(status = 'succeeded' AND t = d.try), false) AS latest_succeeded,
                 coalesce(bool_or(status = 'succeeded' AND t = d.try AND charge_mils > 0 AND refunded_mils = 0), false)
                   AS latest_paid_whole
            FROM generate_series(1, d.try) t,
                 LATERAL (SELECT t = d.try AND d.state = 'running' AS runs, o.*
                            FROM rollouts o WHERE o.id = ${idOfTry("t")} LIMIT 1) tries
           -- Outside of the limit, so that no plan looks for one rollout among all of its dataset.
           WHERE tries.dataset_id = $1 AND tries.dataset_row = d.n AND tries.customer_id = $2
        ) r
        ORDER BY d.n`,
      [id, customer_id, after?.n ?? 0, limit],
    ),
  );
}
