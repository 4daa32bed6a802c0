/** What the routes do not show from outside: files that a delivery holds open. */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";

import { fastify } from "fastify";
import { afterAll, beforeAll, expect, test } from "vitest";

import { createFsBlobs } from "#blobs/fs.ts";
import { addAnswerEnd } from "#gateway/plugins/answer-end.ts";
import { sendVideo } from "#gateway/predict/deliver.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let folder: string;
beforeAll(async () => {
  database = await createTestDatabase();
  folder = await mkdtemp(join(tmpdir(), "dream-engine-deliver-"));
});
afterAll(async () => {
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

async function finished(): Promise<Rollout> {
  const { db } = database;
  const { id } = await accept(db, await newCustomer(db));
  await dispatch(db, id);
  const { rollout } = await settle(db, id, 1, succeeded());
  if (!rollout) throw new Error(`no rollout ${id}`);
  return rollout;
}

test("a video whose caller went away before the first byte leaves no file open", async () => {
  const opened: Readable[] = [];
  const store = createFsBlobs(folder);
  const blobs: typeof store = {
    ...store,
    async stream(key, range) {
      const body = await store.stream(key, range);
      opened.push(body);
      return body;
    },
  };
  const rollout = await finished();
  for (const key of rollout.result?.video_keys ?? []) await blobs.put(key, Buffer.alloc(1_000));

  const app = fastify();
  addAnswerEnd(app);
  app.addHook("onSend", async (_request, reply, payload) => {
    if (!(payload instanceof Readable)) throw new Error("expected the video as a stream");
    // As a connection that closes does; then there is nothing left to send.
    payload.destroy();
    await once(payload, "close");
    reply.header("Content-Length", 0);
    return "";
  });
  app.get("/", (request, reply) => sendVideo({ db: database.db, blobs, log: silentLog }, rollout, request, reply));
  expect((await app.inject("/")).statusCode).toBe(200);
  expect(opened.filter((body) => !body.destroyed)).toEqual([]);
  await app.close();
});
