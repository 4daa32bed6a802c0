/** One cycle of a dataset's life in this process, step by step and timed: the very functions that the processes run. */
import { randomBytes } from "node:crypto";

import { createFsBlobs } from "#blobs/fs.ts";
import { type DatasetId, type RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { collectFinished } from "#datasets/collect.ts";
import { feedSlice, nextSlice } from "#datasets/feed.ts";
import { prepareRows, type RunModel } from "#datasets/prepare.ts";
import { takeTurn } from "#datasets/turn.ts";
import { createFrameNormaliser } from "#inputs/frame.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { createOutbound } from "#platform/outbound.ts";
import type { Log } from "#platform/log.ts";
import { createSlots } from "#platform/slots.ts";
import { markDispatched, readBacklog, readHeads, readInFlight } from "#rollouts/dispatch.ts";
import { tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";

/** Of the runner: enough for a cycle. */
const LEASE_MS = 600_000;
/** As the dispatcher and the settlement worker have them. */
const BACKLOG_ROWS_MAX = 200;
const SETTLED_AT_ONCE = 8;
/** Never reached. */
const BACKLOG = { per_customer: 10_000, all: 100_000 };

export const STEPS = ["take up", "prepare inputs", "pay and queue", "dispatch", "settle", "collect"] as const;
export type Step = (typeof STEPS)[number];
/** Milliseconds a row. */
export type StepTimes = Readonly<Record<Step, number>>;

export interface Cycles {
  /** Takes rows up, at most a slice, and brings them to their end. */
  run(): Promise<StepTimes>;
  stop(): Promise<void>;
}

/** Takes the dataset for itself: no runner and no scheduler may work on this database. */
export async function startCycles(options: {
  readonly db: Database;
  readonly id: DatasetId;
  /** Folder of the blob store. */
  readonly blobs: string;
  readonly model: RunModel;
  readonly log: Log;
}): Promise<Cycles> {
  const { db, id, model, log } = options;
  const blobs = createFsBlobs(options.blobs);
  const { slug } = model.manifest;
  const leadership = await tryLead(db, "bench");
  if (!leadership) throw new Error("a scheduler leads already");
  await db.query("UPDATE datasets SET state = 'running', started_at = now(), resting_since = NULL WHERE id = $1", [id]);
  const turn = { dataset_id: id, name: "bench" };
  const mine = async () => {
    // Without a pace a slice is the smallest there is, and so the same for every size.
    const without = "runner_id = NULL, runner_until = NULL, pace_rows = 0, pace_s = 0";
    await db.query(`UPDATE datasets SET ${without} WHERE id = $1`, [id]);
    const dataset = await takeTurn(db, { name: turn.name, leaseMs: LEASE_MS, without: [] });
    if (dataset?.id !== id) throw new Error("another dataset is in the way");
    return dataset;
  };
  const prepareParts = {
    blobs,
    outbound: createOutbound({ allowPrivate: true }),
    retryDelaysMs: [],
    large: createSlots(1),
    normaliseFrame: createFrameNormaliser(),
    clock: systemClock,
    random: randomBytes,
  };
  const collectParts = { db, blobs, clock: systemClock, log };

  async function run(): Promise<StepTimes> {
    const times: Partial<Record<Step, number>> = {};
    const timed = async <T>(step: Step, work: () => Promise<T>): Promise<T> => {
      const startedAt = performance.now();
      const result = await work();
      times[step] = (times[step] ?? 0) + performance.now() - startedAt;
      return result;
    };
    const { dataset, slice } = await timed("take up", async () => {
      const dataset = await mine();
      return { dataset, slice: await nextSlice(db, dataset, BACKLOG, Date.now()) };
    });
    const prepared = await timed("prepare inputs", () =>
      prepareRows(dataset, slice, model, prepareParts, new AbortController().signal),
    );
    const fed = await timed("pay and queue", () => feedSlice(db, turn, prepared));
    const rows = fed?.accepted.length ?? 0;
    if (rows === 0 || rows !== slice.length) throw new Error(`${rows} of ${slice.length} rows were taken up`);

    const dispatched = await timed("dispatch", async () => {
      await readInFlight(db, slug);
      const line = { model: slug, lane: "bulk", now: new Date(systemClock.now()), scoredAtOnceMax: 1 } as const;
      const heads = await readHeads(db, line);
      const customers = heads.map((head) => head.customer_id);
      const backlog = await readBacklog(db, { ...line, customers, each: BACKLOG_ROWS_MAX });
      return markDispatched(
        db,
        leadership?.epoch ?? 0n,
        backlog.map((rollout) => rollout.id),
      );
    });
    if (dispatched.length !== rows) throw new Error(`${dispatched.length} of ${rows} rollouts were dispatched`);
    const results = await Promise.all(
      dispatched.map(async ({ id, frames }) => ({ id, result: await storeVideo(id, frames) })),
    );
    await timed("settle", async () => {
      await Promise.all(
        Array.from({ length: SETTLED_AT_ONCE }, async () => {
          for (let next = results.shift(); next; next = results.shift()) {
            await settle(db, next.id, 1, { kind: "succeeded", result: next.result });
          }
        }),
      );
    });
    let collected = 0;
    await timed("collect", async () => {
      while (collected < rows) {
        const states = (await collectFinished(turn, collectParts, new Map()))?.states ?? [];
        if (states.length === 0) throw new Error(`${collected} of ${rows} rows were collected`);
        collected += states.length;
      }
    });
    return Object.fromEntries(STEPS.map((step) => [step, (times[step] ?? 0) / rows])) as StepTimes; // each was timed
  }

  async function storeVideo(rollout: RolloutId, frames: number) {
    const key = blobKeys.video(rollout, 1, "bench", 0);
    await blobs.put(key, Buffer.from("a video"));
    return { video_keys: [key], frames, timings: { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 } };
  }

  return { run, stop: () => leadership.resign() };
}
