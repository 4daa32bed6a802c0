/**
 * What became of rows that run: their finished rollouts are noted in the rows, and in the counters of the dataset, in one
 * transaction. The video is copied to where it stays before that, so a row that succeeded always has one; where it is
 * gone, the same transaction takes back that its rollout succeeded, and refunds it.
 */
import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import type { RowState } from "#contract/datasets.ts";
import type { DatasetId, RolloutId } from "#contract/ids.ts";
import { blobKeys, type RolloutResult } from "#contract/jobs.ts";
import type { TerminalStatus } from "#contract/rollout.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database, Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { createSlots } from "#platform/slots.ts";
import { TAKEN_BACK } from "#rollouts/lifecycle.ts";
import { type TakenBack, takeBack } from "#rollouts/take-back.ts";

import type { Dataset } from "./dataset.ts";
import { nextPace } from "./pace.ts";
import { lockMine, type Turn } from "./turn.ts";

/** Rows of one transaction. */
const COLLECTED_AT_ONCE_MAX = 128;
/** Videos copied at once; on S3 each takes tens of milliseconds, and none of our memory. */
const COPIES_AT_ONCE = 8;

export interface CollectParts {
  readonly db: Database;
  readonly blobs: BlobStore;
  readonly clock: Clock;
  readonly log: Log;
}

interface Finished {
  readonly n: number;
  readonly row_id: string;
  readonly rollout_id: RolloutId;
  readonly status: TerminalStatus;
  readonly result: RolloutResult | null;
  readonly error_code: string | null;
  readonly error_message: string | null;
}

/** How a row ends. */
interface Ended {
  readonly n: number;
  readonly rollout_id: RolloutId;
  readonly state: Extract<RowState, TerminalStatus>;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly engine_wall_ms: number | null;
  readonly video_key: string | null;
  readonly video_bytes: number | null;
}

/** Rows whose video could not be copied, and why. One that never can be must not keep back the others. */
export type Stuck = Map<number, unknown>;

export interface Collected {
  /** Of the rows that were noted, at most one batch. */
  readonly states: readonly Ended["state"][];
  /** How many of them had lost their video, and the rollouts that were refunded for it. */
  readonly videosLost: number;
  readonly takenBack: readonly TakenBack[];
}

const NOTHING: Collected = { states: [], videosLost: 0, takenBack: [] };

/** Null when the turn is another one's by now. Passes over the rows that are `stuck`, and adds to them. */
export async function collectFinished(turn: Turn, parts: CollectParts, stuck: Stuck): Promise<Collected | null> {
  const finished = await readFinished(parts.db, turn.dataset_id, [...stuck.keys()]);
  if (finished.length === 0) return NOTHING;
  const slots = createSlots(COPIES_AT_ONCE);
  const copied = await Promise.all(
    finished.map(async (row) => {
      const giveBack = await slots.take();
      try {
        return await endOf(turn.dataset_id, row, parts);
      } catch (error) {
        stuck.set(row.n, error);
        return null;
      } finally {
        giveBack();
      }
    }),
  );
  const ended = copied.filter((each) => each !== null);
  if (ended.length === 0) return NOTHING;
  return await parts.db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (!dataset) return null;
    const refunds = await refundLost(tx, dataset.id, ended, parts.log);
    return { ...refunds, states: await note(tx, dataset, ended, parts.clock.now()) };
  });
}

function readFinished(sql: Sql, id: DatasetId, without: readonly number[]): Promise<Finished[]> {
  return sql.query<Finished>(
    // LIMIT 1 keeps a plan made for a small table from joining whole tables once they are large.
    `SELECT d.n, d.row_id, r.*
       FROM (SELECT n, row_id, rollout_id FROM dataset_rows WHERE dataset_id = $1 AND state = 'running' AND n <> ALL ($2) ORDER BY n) d,
            LATERAL (SELECT id AS rollout_id, status, result, error_code, error_message
                       FROM rollouts WHERE id = d.rollout_id AND finished_at IS NOT NULL LIMIT 1) r
      LIMIT ${COLLECTED_AT_ONCE_MAX}`,
    [id, without],
  );
}

/** Throws where the video could neither be copied nor be known to be gone. */
async function endOf(id: DatasetId, row: Finished, { blobs, log }: CollectParts): Promise<Ended> {
  const { n, rollout_id, status, error_code, error_message, result } = row;
  const end = { n, rollout_id, error_code: null, error_message: null, video_key: null, video_bytes: null };
  const engine_wall_ms = result?.timings.engine_wall_ms ?? null;
  if (status === "failed") {
    return { ...end, state: "failed", error_code: error_code ?? "internal", error_message, engine_wall_ms };
  }
  if (status !== "succeeded") return { ...end, state: status, engine_wall_ms };
  const from = result?.video_keys[0];
  const video_key = blobKeys.datasetVideo(id, row.row_id);
  if (from !== undefined) {
    await blobs.copy(from, video_key).catch((error: unknown) => {
      if (!(error instanceof BlobNotFound)) throw error;
    });
  }
  // Also where nothing was copied now: a process that died may have copied it, and then it is not lost.
  const stored = await blobs.info(video_key);
  if (!stored) {
    log.error({ dataset_id: id, row_id: row.row_id, rollout_id, key: from }, "the video of a row is not stored");
    return { ...end, state: "failed", error_code: VIDEO_LOST, error_message: LOST_MESSAGE, engine_wall_ms };
  }
  return { ...end, state: "succeeded", engine_wall_ms, video_key, video_bytes: stored.bytes };
}

const VIDEO_LOST = TAKEN_BACK.error_code;
const LOST_MESSAGE = "its video got lost after it was made; a retry makes it anew";

/** Rows without a video cost nothing. Locks all rows of the batch, because rollouts and the account are locked after them. */
async function refundLost(
  tx: Sql,
  id: DatasetId,
  ended: readonly Ended[],
  log: Log,
): Promise<Omit<Collected, "states">> {
  const lost = new Set(ended.filter((row) => row.error_code === VIDEO_LOST).map((row) => row.rollout_id));
  if (lost.size === 0) return NOTHING;
  const rows = await tx.query<{ rollout_id: RolloutId }>(
    `SELECT rollout_id FROM dataset_rows WHERE dataset_id = $1 AND n = ANY ($2) AND state = 'running' ORDER BY n FOR NO KEY UPDATE`,
    [id, ended.map(({ n }) => n)],
  );
  const running = rows.map(({ rollout_id }) => rollout_id).filter((rollout_id) => lost.has(rollout_id));
  const takenBack = await takeBack(tx, running, LOST_MESSAGE);
  const kept = running.filter((rollout_id) => !takenBack.some((each) => each.id === rollout_id));
  if (kept.length > 0) {
    log.error(
      { dataset_id: id, rollouts: kept },
      "videos are lost, and what was paid for them must be given back by hand",
    );
  }
  return { videosLost: running.length, takenBack };
}

/** Each row once: it is of this try, and it still runs. The money is what the rollout says. */
async function note(
  tx: Sql,
  dataset: Dataset,
  ended: readonly Ended[],
  nowMs: number,
): Promise<readonly Ended["state"][]> {
  const column = (valueOf: (row: Ended) => unknown): unknown[] => ended.map(valueOf);
  const pace = nextPace(dataset, ended.length, nowMs);
  const [noted] = await tx.query<{ states: Ended["state"][] }>(
    `WITH moved AS (
       UPDATE dataset_rows d
          SET state = e.state, error_code = e.error_code, error_message = e.error_message,
              frames = r.frames_delivered, engine_wall_ms = e.engine_wall_ms, video_key = e.video_key,
              video_bytes = e.video_bytes, charged_mils = d.charged_mils + r.charge_mils,
              refunded_mils = d.refunded_mils + r.refunded_mils, finished_at = now()
         FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::real[], $8::text[], $9::bigint[])
              AS e (n, rollout_id, state, error_code, error_message, engine_wall_ms, video_key, video_bytes)
         CROSS JOIN LATERAL (SELECT charge_mils, refunded_mils, frames_delivered FROM rollouts WHERE id = e.rollout_id LIMIT 1) r
        WHERE d.dataset_id = $1 AND d.n = ANY ($2) AND d.n = e.n AND d.state = 'running' AND d.rollout_id = e.rollout_id
       RETURNING d.state, r.charge_mils, r.refunded_mils, r.frames_delivered
     ),
     sums AS (
       SELECT count(*)::int AS rows,
              count(*) FILTER (WHERE state = 'succeeded')::int AS succeeded,
              count(*) FILTER (WHERE state = 'failed')::int AS failed,
              count(*) FILTER (WHERE state = 'cancelled')::int AS cancelled,
              count(*) FILTER (WHERE state = 'expired')::int AS expired,
              coalesce(sum(charge_mils), 0)::bigint AS charged,
              coalesce(sum(refunded_mils), 0)::bigint AS refunded,
              coalesce(sum(frames_delivered), 0)::bigint AS frames,
              coalesce(array_agg(state), '{}') AS states
         FROM moved
     )
     UPDATE datasets d
        SET rows_running = d.rows_running - s.rows,
            rows_succeeded = d.rows_succeeded + s.succeeded,
            rows_failed = d.rows_failed + s.failed,
            rows_cancelled = d.rows_cancelled + s.cancelled,
            rows_expired = d.rows_expired + s.expired,
            held_mils = d.held_mils - s.charged,
            charged_mils = d.charged_mils + s.charged,
            refunded_mils = d.refunded_mils + s.refunded,
            frames_delivered = d.frames_delivered + s.frames,
            pace_rows = $10, pace_s = $11, pace_at = $12
       FROM sums s
      WHERE d.id = $1
     RETURNING s.states`,
    [
      dataset.id,
      column((row) => row.n),
      column((row) => row.rollout_id),
      column((row) => row.state),
      column((row) => row.error_code),
      column((row) => row.error_message),
      column((row) => row.engine_wall_ms),
      column((row) => row.video_key),
      column((row) => row.video_bytes),
      pace.pace_rows,
      pace.pace_s,
      pace.pace_at,
    ],
  );
  return noted?.states ?? [];
}
