import { randomBytes } from "node:crypto";
import { mkdtemp, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { BlobInfo } from "#blobs/blob-store.ts";
import { createFsBlobs } from "#blobs/fs.ts";
import { newRolloutId, type RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { systemClock } from "#platform/clock.ts";
import { settle } from "#rollouts/settle.ts";
import { deleteOrphans } from "#scheduler/sweep/janitor.ts";

import { accept, dispatch } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
let folder: string;

beforeAll(async () => {
  fixture = await openFixture();
  folder = await mkdtemp(join(tmpdir(), "dream-janitor-"));
});
afterAll(async () => {
  await fixture.end();
  await rm(folder, { recursive: true, force: true });
});

const partOf = (id: RolloutId): string => `rollouts/${id.slice(0, "rollout_".length + 2)}`;

test("deletes old blobs that no rollout names, and nothing else", async () => {
  const blobs = createFsBlobs(folder);
  const { db } = fixture.database;
  const delivered = (await accept(db, fixture.key)).id;
  await dispatch(db, delivered);
  const video = (attempt: number, run: string): string => blobKeys.video(delivered, attempt, run, 0);
  const timings = { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 };
  const result = { video_keys: [video(1, "settled")], frames: 49, timings };
  await settle(db, delivered, 1, { kind: "succeeded", result });
  const waiting = (await accept(db, fixture.key)).id;
  const nobody = newRolloutId(randomBytes);
  const recent = newRolloutId(randomBytes);

  const hoursAgo = new Date(Date.now() - 2 * 3_600_000);
  const put = async (key: string, at = hoursAgo): Promise<string> => {
    await blobs.put(key, Buffer.from("x"));
    await utimes(join(folder, key), at, at);
    return key;
  };
  const kept = await Promise.all([
    put(blobKeys.frame(delivered)),
    put(blobKeys.result(delivered, 1)),
    put(video(1, "settled")),
    put(blobKeys.frame(waiting)),
    put(blobKeys.frame(recent), new Date()),
  ]);
  const orphans = await Promise.all([
    put(blobKeys.frame(nobody)),
    put(blobKeys.actions(nobody)),
    put(video(1, "late")),
    put(video(7, "settled")),
  ]);

  const signal = new AbortController().signal;
  const options = { db, blobs, clock: systemClock, log: silentLog };
  const parts = new Set([delivered, waiting, nobody, recent].map(partOf));
  for (const part of parts) await deleteOrphans(part, options, signal);

  const exists = (key: string): Promise<boolean> => blobs.info(key).then((info) => info !== null);
  expect(await Promise.all(kept.map(exists))).toEqual(kept.map(() => true));
  expect(await Promise.all(orphans.map(exists))).toEqual(orphans.map(() => false));
});

test("spares an old blob that is written again while the others are looked at", async () => {
  const blobs = createFsBlobs(folder);
  const { db } = fixture.database;
  const id = newRolloutId(randomBytes);
  const [again, old] = [blobKeys.frame(id), blobKeys.actions(id)];
  const hoursAgo = new Date(Date.now() - 2 * 3_600_000);
  for (const key of [again, old]) {
    await blobs.put(key, Buffer.from("x"));
    await utimes(join(folder, key), hoursAgo, hoursAgo);
  }
  const options = { db, blobs: { ...blobs, list: listed }, clock: systemClock, log: silentLog };
  async function* listed(prefix: string): AsyncGenerator<BlobInfo> {
    yield* blobs.list(prefix);
    await blobs.put(again, Buffer.from("paid by now"));
  }
  expect(await deleteOrphans(`rollouts/${id}`, options, new AbortController().signal)).toBe(1);
  expect((await blobs.get(again)).toString()).toBe("paid by now");
  expect(await blobs.info(old)).toBeNull();
});
