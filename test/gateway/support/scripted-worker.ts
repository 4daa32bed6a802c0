/**
 * Stands for scheduler, engine and settlement worker behind the gateway: takes every queued rollout, writes real
 * (if dull) videos and settles. What becomes of a rollout is told by the test.
 */
import { execFile } from "node:child_process";
import { once } from "node:events";

import ffmpeg from "@ffmpeg-installer/ffmpeg";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { RolloutId } from "#contract/ids.ts";
import { blobKeys, type FailureCode, type RolloutScore } from "#contract/jobs.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { settle } from "#rollouts/settle.ts";

export type Fate = "succeed" | "hang" | "hang dispatched" | "expire" | { readonly fail: FailureCode };

export interface ScriptedWorker extends Service {
  /** What happens to rollouts that come from now on. */
  fate: Fate;
  /** Appended to every video. */
  paddingBytes: number;
  /** Lets everything that hangs succeed now. */
  finishHanging(): Promise<void>;
  /** Ids in the order they were taken. */
  readonly taken: RolloutId[];
}

export const ENGINE_WALL_MS = 1234.5;
export const SCRIPTED_SCORE: RolloutScore = { psnr_db: 41.25, ssim: 0.9875, lpips: 0.0125 };

export async function startScriptedWorker(parts: {
  db: Database;
  queues: QueueSystem;
  blobs: BlobStore;
  videoSize: (model: string) => { height: number; width: number };
}): Promise<ScriptedWorker> {
  const { db, queues, blobs, videoSize } = parts;
  const hanging: QueuedRow[] = [];

  interface QueuedRow {
    readonly id: RolloutId;
    readonly model: string;
    readonly k: number;
    readonly actions_per_candidate: number;
    readonly attempt: number;
    readonly scored: boolean;
  }

  async function succeed({ id, model, k, actions_per_candidate, attempt, scored }: QueuedRow): Promise<void> {
    // A worker reads its inputs: without them there is nothing to dream from.
    await blobs.get(blobKeys.frame(id));
    const actions = await blobs.get(blobKeys.actions(id));
    const video_keys = [];
    for (let candidate = 0; candidate < k; candidate++) {
      const key = blobKeys.video(id, attempt, "run", candidate);
      // Distinguishable candidates: the shade tells which actions it was made of.
      const first = actions.readFloatLE((actions.length / k) * candidate);
      const mp4 = await video(actions_per_candidate + 1, videoSize(model), Math.round(first * 10 + 128));
      await blobs.put(key, Buffer.concat([mp4, Buffer.alloc(worker.paddingBytes)]));
      video_keys.push(key);
    }
    const frames = k * (actions_per_candidate + 1);
    const timings = { engine_wall_ms: ENGINE_WALL_MS, fetch_ms: 1, encode_ms: 1, total_ms: ENGINE_WALL_MS + 2 };
    await settle(db, id, attempt, {
      kind: "succeeded",
      result: { video_keys, frames, timings, ...(scored && { score: SCRIPTED_SCORE }) },
    });
    await queues.signals.publish({ kind: "finished", rollout_id: id });
  }

  /** As a dispatcher does it: false when it was cancelled meanwhile. */
  async function dispatched(id: RolloutId): Promise<boolean> {
    const rows = await db.query(
      `UPDATE rollouts SET status = 'dispatched', attempt = attempt + 1, dispatched_at = now(), sweep_at = now()
        WHERE id = $1 AND status = 'queued' RETURNING id`,
      [id],
    );
    return rows.length > 0;
  }

  async function take(row: QueuedRow): Promise<void> {
    const { fate } = worker;
    worker.taken.push(row.id);
    if (fate === "hang") {
      hanging.push(row);
      return;
    }
    if (!(await dispatched(row.id))) return;
    const running = { ...row, attempt: row.attempt + 1 };
    if (fate === "hang dispatched") hanging.push(running);
    else if (fate === "succeed") await succeed(running);
    else {
      await settle(
        db,
        row.id,
        null,
        fate === "expire"
          ? { kind: "expired" }
          : { kind: "failed", code: fate.fail, message: "scripted failure", frames_delivered: 0 },
      );
      await queues.signals.publish({ kind: "finished", rollout_id: row.id });
    }
  }

  let round = Promise.resolve();
  async function takeAll(): Promise<void> {
    const rows = await db.query<QueuedRow>(
      `SELECT id, model, k, actions_per_candidate, attempt, scored FROM rollouts
        WHERE status = 'queued' AND NOT (id = ANY ($1)) ORDER BY created_at`,
      [hanging.map(({ id }) => id)],
    );
    for (const row of rows) await take(row);
  }
  const unsubscribe = await queues.signals.subscribe(["queued"], () => {
    round = round.then(takeAll);
  });

  const worker: ScriptedWorker = {
    fate: "succeed",
    taken: [],
    paddingBytes: 0,
    async finishHanging() {
      // What was accepted a moment ago may not have been taken yet.
      await (round = round.then(takeAll));
      for (const row of hanging.splice(0)) {
        const [alive] = await db.query(`SELECT FROM rollouts WHERE id = $1 AND finished_at IS NULL`, [row.id]);
        if (!alive) continue; // cancelled meanwhile
        if (row.attempt === 0 && !(await dispatched(row.id))) continue;
        await succeed({ ...row, attempt: Math.max(1, row.attempt) });
      }
    },
    async stop() {
      await unsubscribe();
      await round;
    },
  };
  return worker;
}

const made = new Map<string, Promise<Buffer>>();

/** H.264, yuv420p, `frames` frames of one shade. */
function video(frames: number, { height, width }: { height: number; width: number }, shade: number): Promise<Buffer> {
  const name = `${frames} ${height}x${width} ${shade}`;
  const known = made.get(name) ?? encode(frames, height, width, shade);
  made.set(name, known);
  return known;
}

async function encode(frames: number, height: number, width: number, shade: number): Promise<Buffer> {
  const input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-r", "10", "-i", "pipe:0"];
  const output = ["-an", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"];
  const container = ["-movflags", "frag_keyframe+empty_moov+default_base_moof", "-f", "mp4", "pipe:1"];
  const child = execFile(ffmpeg.path, ["-v", "error", ...input, ...output, ...container], {
    encoding: "buffer",
    maxBuffer: 16 * 1024 * 1024,
  });
  const chunks: Buffer[] = [];
  child.stdout?.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stdin?.end(Buffer.alloc(frames * height * width * 3, shade));
  const [code] = (await once(child, "close")) as [number | null];
  if (code !== 0) throw new Error(`ffmpeg ended with ${code}`);
  return Buffer.concat(chunks);
}
