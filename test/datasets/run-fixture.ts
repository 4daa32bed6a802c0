/**
 * What the tests of running datasets stand on: a real database, the queue inside it, blobs in a folder, one small model,
 * a runner under its own role. In the place of scheduler, engine and settlement one function ends queued rollouts.
 */
import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Registry } from "prom-client";
import sharp from "sharp";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createFsBlobs } from "#blobs/fs.ts";
import { type DatasetId, newDatasetId } from "#contract/ids.ts";
import { blobKeys, type Outcome } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { type Dataset, DATASET_COLUMNS } from "#datasets/dataset.ts";
import { type DatasetRow, type InputRef, ROW_COLUMNS } from "#datasets/row.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createOutbound } from "#platform/outbound.ts";
import type { Service } from "#platform/lifecycle.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { type RunnerOptions, startRunner } from "#workers/runner/runner.ts";

import { eventually } from "../queue/test-queue.ts";
import { dispatch, newCustomer } from "../support/ledger.ts";
import { npy } from "../support/npy.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";

const MODEL = "pusht-small";
export const PRICE = 5;
/** More than any of these tests has. */
export const QUOTAS = { datasets: 100, rows: 1_000_000 };
export const BACKLOG = { per_customer: 10_000, all: 100_000 };

export interface RowSpec {
  readonly frame?: InputRef;
  readonly actions?: InputRef;
  readonly num_actions?: number | null;
  readonly metadata?: Readonly<Record<string, unknown>>;
}

export interface DatasetSpec {
  readonly rows: readonly RowSpec[] | number;
  /** Bad rows, which come after the others. */
  readonly invalid?: number;
  readonly key?: CreatedKey;
  readonly state?: "ready" | "running";
  readonly budget?: Mils;
  readonly model?: string;
  readonly webhook_url?: string;
}

/** How a rollout ends; `null` leaves it as it is for now. */
export type OutcomeOf = (rollout: Rollout, video: string) => Outcome | null;

export interface RunFixture {
  readonly database: TestDatabase;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly folder: string;
  readonly model: Manifest;
  readonly key: CreatedKey;
  /** Actions of a row of `add` that does not say otherwise. */
  readonly numActions: number;
  /** Start frame and actions that rows share unless they say otherwise. */
  readonly frame: Buffer;
  actions(count: number): Buffer;
  add(spec: DatasetSpec): Promise<DatasetId>;
  start(overrides?: Partial<RunnerOptions>): Promise<Service>;
  read(id: DatasetId): Promise<Dataset>;
  rows(id: DatasetId): Promise<DatasetRow[]>;
  until(id: DatasetId, condition: (dataset: Dataset) => boolean, limitMs?: number): Promise<Dataset>;
  balance(key?: CreatedKey): Promise<Mils>;
  /** Ends what is queued now, as scheduler, worker and settlement together would; how many. */
  engine(outcomeOf?: OutcomeOf): Promise<number>;
  /** The same, again and again until it is stopped. */
  startEngine(outcomeOf?: OutcomeOf): Service;
  end(): Promise<void>;
}

export const succeed: OutcomeOf = (rollout, video) => ({
  kind: "succeeded",
  result: {
    video_keys: [video],
    frames: rollout.frames,
    timings: { engine_wall_ms: 12.5, fetch_ms: 1, encode_ms: 1, total_ms: 15 },
  },
});

/** Blobs are in a folder, unless there is a store. */
export async function openRunFixture(store?: BlobStore): Promise<RunFixture> {
  const database = await createTestDatabase();
  const { db } = database;
  const queues = await openQueues({ redis_url: undefined, database_url: database.url, migrate: true, log: silentLog });
  const folder = await mkdtemp(join(tmpdir(), "dream-runner-"));
  const blobs = store ?? createFsBlobs(join(folder, "blobs"));
  const [model] = (await loadManifests("models")).filter(({ slug }) => slug === MODEL);
  if (!model) throw new Error(`no bundle ${MODEL}`);
  const { height, width, action_dim, chunk_size } = model.shapes;
  const numActions = 3 * chunk_size;
  const actions = (count: number): Buffer =>
    npy.write(new Float32Array(count * action_dim).fill(0.5), [count, action_dim]);
  const frame = await sharp({ create: { width, height, channels: 3, background: "#336699" } })
    .png()
    .toBuffer();
  const key = await newCustomer(db);

  async function add(spec: DatasetSpec): Promise<DatasetId> {
    const id = newDatasetId(randomBytes);
    const owner = spec.key ?? key;
    const rows = typeof spec.rows === "number" ? Array.from({ length: spec.rows }, (): RowSpec => ({})) : spec.rows;
    const sharedFrame = blobKeys.datasetInput(id, 1, "frame");
    const sharedActions = blobKeys.datasetInput(id, 1, "actions");
    await blobs.put(sharedFrame, frame);
    await blobs.put(sharedActions, actions(numActions));
    const lengths = rows.map((row) => (row.num_actions === undefined ? numActions : row.num_actions));
    const measured = lengths.filter((length) => length !== null);
    const invalid = spec.invalid ?? 0;
    const state = spec.state ?? "running";
    await db.query(
      `INSERT INTO datasets (id, customer_id, key_id, request_id, name, model, state, on_invalid, budget_mils, webhook_url,
                             received_at, started_at, resting_since, rows_total, rows_invalid, rows_pending, frames_expected, rows_unmeasured)
       VALUES ($1, $2, $3, 'req_test', 'a test', $4, $5, 'skip', $6, $7, now(),
               CASE WHEN $5 = 'running' THEN now() END, CASE WHEN $5 = 'ready' THEN now() END, $8, $9, $10, $11, $12)`,
      [
        id,
        owner.customer_id,
        owner.key_id,
        spec.model ?? MODEL,
        state,
        spec.budget ?? null,
        spec.webhook_url ?? null,
        rows.length + invalid,
        invalid,
        rows.length,
        measured.reduce((sum, length) => sum + length + 1, 0),
        rows.length - measured.length,
      ],
    );
    await db.query(
      `INSERT INTO dataset_rows (dataset_id, n, row_id, state, source, params, metadata, num_actions)
       SELECT $1, n, 'ep-' || n, 'pending', source, jsonb_build_object('seed', n::text, 'num_steps', 2, 'guidance', 0, 'prompt', ''),
              metadata, num_actions
         FROM unnest($2::jsonb[], $3::jsonb[], $4::int[]) WITH ORDINALITY AS r (source, metadata, num_actions, n)`,
      [
        id,
        rows.map((row) => ({
          frame: row.frame ?? { kind: "blob", key: sharedFrame },
          actions: row.actions ?? { kind: "blob", key: sharedActions },
        })),
        rows.map((row) => row.metadata ?? {}),
        lengths,
      ],
    );
    await db.query(
      `INSERT INTO dataset_rows (dataset_id, n, state, error_code, error_message)
       SELECT $1, $2 + n, 'invalid', 'invalid_input', 'expected a JSON object' FROM generate_series(1, $3) n`,
      [id, rows.length, invalid],
    );
    return id;
  }

  async function read(id: DatasetId): Promise<Dataset> {
    const [dataset] = await db.query<Dataset>(`SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1`, [id]);
    if (!dataset) throw new Error(`no dataset ${id}`);
    return dataset;
  }

  async function engine(outcomeOf: OutcomeOf = succeed): Promise<number> {
    const queued = await db.query<Rollout>(
      `SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE status = 'queued' ORDER BY created_at, id`,
    );
    let ended = 0;
    for (const rollout of queued) {
      const video = blobKeys.video(rollout.id, 1, "run", 0);
      const outcome = outcomeOf(rollout, video);
      if (!outcome) continue;
      if (outcome.kind !== "expired") await dispatch(db, rollout.id);
      if (outcome.kind === "succeeded") await blobs.put(video, Buffer.from(`the video of ${rollout.id}`));
      await settle(database.as("settlement"), rollout.id, null, outcome);
      await queues.signals.publish({ kind: "finished", rollout_id: rollout.id });
      ended += 1;
    }
    return ended;
  }

  const services: Service[] = [];
  const started = <S extends Service>(service: S): S => {
    services.push(service);
    return service;
  };

  return {
    database,
    queues,
    blobs,
    folder,
    model,
    key,
    numActions,
    frame,
    actions,
    add,
    read,
    engine,
    start: async (overrides = {}) =>
      started(
        await startRunner({
          db: database.as("runner"),
          queues,
          blobs,
          models: [model],
          outbound: createOutbound({ allowPrivate: true }),
          backlog: BACKLOG,
          clock: systemClock,
          random: randomBytes,
          log: silentLog,
          registry: new Registry(),
          retryDelaysMs: [10, 20],
          ...overrides,
        }),
      ),
    rows: (id) =>
      db.query<DatasetRow>(`SELECT ${ROW_COLUMNS} FROM dataset_rows WHERE dataset_id = $1 ORDER BY n`, [id]),
    until: (id, condition, limitMs = 15_000) =>
      eventually(async () => {
        const dataset = await read(id);
        return condition(dataset) ? dataset : null;
      }, limitMs),
    async balance(owner = key) {
      const [account] = await db.query<{ balance_mils: bigint }>(
        `SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
        [owner.customer_id],
      );
      return mils(account?.balance_mils ?? 0n);
    },
    startEngine(outcomeOf) {
      const stopped = new AbortController();
      const work = (async () => {
        while (!stopped.signal.aborted) {
          const ended = await engine(outcomeOf);
          if (ended === 0) await new Promise((resolve) => setTimeout(resolve, 20));
        }
      })();
      return started({
        stop: async () => {
          stopped.abort();
          await work;
        },
      });
    },
    async end() {
      for (const service of services.toReversed()) await service.stop();
      await queues.stop();
      await database.drop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** What must hold of every dataset at every moment: counters say what the rows say, and the rows what the ledger says. */
export async function assertAddsUp({ database: { db } }: Pick<RunFixture, "database">, id: DatasetId): Promise<void> {
  const problems = await db.query<{ problem: string }>(
    `WITH counted AS (
       SELECT count(*)::int AS total,
              count(*) FILTER (WHERE state = 'invalid')::int AS invalid,
              count(*) FILTER (WHERE state = 'pending')::int AS pending,
              count(*) FILTER (WHERE state = 'running')::int AS running,
              count(*) FILTER (WHERE state = 'succeeded')::int AS succeeded,
              count(*) FILTER (WHERE state = 'failed')::int AS failed,
              count(*) FILTER (WHERE state = 'cancelled')::int AS cancelled,
              count(*) FILTER (WHERE state = 'expired')::int AS expired,
              coalesce(sum(charged_mils), 0) AS charged, coalesce(sum(refunded_mils), 0) AS refunded
         FROM dataset_rows WHERE dataset_id = $1
     ),
     ledger AS (
       SELECT coalesce(-sum(e.amount_mils) FILTER (WHERE e.kind = 'debit'), 0) AS debits,
              coalesce(sum(e.amount_mils) FILTER (WHERE e.kind = 'refund'), 0) AS refunds,
              coalesce(-sum(e.amount_mils) FILTER (WHERE e.kind = 'debit' AND d.rollout_id IS NOT NULL), 0) AS held
         FROM rollouts r JOIN ledger_entries e ON e.rollout_id = r.id
         LEFT JOIN dataset_rows d ON d.dataset_id = r.dataset_id AND d.rollout_id = r.id AND d.state = 'running'
        WHERE r.dataset_id = $1
     ),
     uncollected AS (
       SELECT coalesce(sum(r.refunded_mils), 0) AS refunds
         FROM dataset_rows d JOIN rollouts r ON r.id = d.rollout_id WHERE d.dataset_id = $1 AND d.state = 'running'
     ),
     frames AS (SELECT coalesce(sum(frames_delivered), 0) AS delivered, coalesce(sum(frames_delivered::bigint * price_mils_per_frame), 0) AS worth
                  FROM rollouts r WHERE dataset_id = $1 AND finished_at IS NOT NULL
                   AND NOT EXISTS (SELECT FROM dataset_rows d WHERE d.rollout_id = r.id AND d.dataset_id = $1 AND d.state = 'running'))
     SELECT problem FROM datasets s, counted c, ledger l, uncollected u, frames f, LATERAL (VALUES
       ('total', s.rows_total = c.total), ('invalid', s.rows_invalid = c.invalid), ('pending', s.rows_pending = c.pending),
       ('running', s.rows_running = c.running), ('succeeded', s.rows_succeeded = c.succeeded),
       ('failed', s.rows_failed = c.failed), ('cancelled', s.rows_cancelled = c.cancelled),
       ('expired', s.rows_expired = c.expired), ('charged', s.charged_mils = c.charged),
       ('refunded', s.refunded_mils = c.refunded), ('held', s.held_mils = l.held),
       ('debits of the ledger', s.charged_mils + s.held_mils = l.debits),
       ('refunds of the ledger', s.refunded_mils + u.refunds = l.refunds),
       ('frames', s.frames_delivered = f.delivered), ('charge of delivered frames', s.charged_mils - s.refunded_mils = f.worth)
     ) AS checks (problem, holds)
     WHERE s.id = $1 AND NOT holds`,
    [id],
  );
  if (problems.length > 0)
    throw new Error(`dataset ${id} does not add up: ${problems.map((p) => p.problem).join(", ")}`);
}
