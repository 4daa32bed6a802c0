/** What a customer may have at once, however many of its requests come together. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { ApiError } from "#contract/errors.ts";
import { type DatasetId, newDatasetId, newRequestId, parseDatasetId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { beginDataset, finishReceiving, type NewDataset } from "#datasets/create.ts";
import { parseCreateParams } from "#datasets/create-params.ts";
import { receiveBody } from "#datasets/receive.ts";
import { rejectDataset } from "#datasets/reject.ts";
import { deleteUpload, storeUpload } from "#datasets/uploads.ts";
import type { CreatedKey } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import { createSlots } from "#platform/slots.ts";
import { PUSHER } from "#test/gateway/support/models.ts";
import { framePng, getWithKey, postForm } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

import { seededRandom } from "../chaos/random.ts";
import { lines, sendRows, urlRow } from "./support/send.ts";

const QUOTAS = { datasets: 4, rows: 30 };
const UPLOADS = 5;
const ROUNDS = 8;

let t: TestGateway;
let db: Database;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway({
    config: {
      DATASETS_UNFINISHED_MAX: QUOTAS.datasets,
      DATASET_ROWS_UNFINISHED_MAX: QUOTAS.rows,
      UPLOADS_MAX: UPLOADS,
    },
  });
  db = t.as("gateway");
});
beforeEach(async () => {
  key = await t.newKey();
});
afterAll(() => t.stop());

const rowsOf = (count: number): object[] => Array.from({ length: count }, () => urlRow());
const send = (count: number, params: object = {}, headers: Record<string, string> = {}) =>
  sendRows(t, key.api_key, rowsOf(count), { start: false, ...params }, headers);

function idOf(text: string): DatasetId {
  const id = parseDatasetId(text);
  if (!id) throw new Error(`no id: ${text}`);
  return id;
}

const end = (id: DatasetId, state: "cancelled" | "completed" = "cancelled"): Promise<unknown> =>
  t.db.query(`UPDATE datasets SET state = $2, finished_at = now(), resting_since = NULL WHERE id = $1`, [id, state]);

async function used(customer = key): Promise<{ datasets: number; rows: number }> {
  const [row] = await t.db.query<{ datasets: number; rows: number }>(
    `SELECT count(*)::int AS datasets, coalesce(sum(rows_total), 0)::int AS rows FROM datasets
      WHERE customer_id = $1 AND finished_at IS NULL`,
    [customer.customer_id],
  );
  return row ?? { datasets: 0, rows: 0 };
}

/** As the route does it, without its bound on how many come in at once. Null where it was refused. */
async function make(count: number, whose = key): Promise<DatasetId | null> {
  const id = newDatasetId(randomBytes);
  const { customer_id, key_id } = whose;
  const params = parseCreateParams(undefined, false);
  const request_id = newRequestId(randomBytes);
  const dataset: NewDataset = {
    id,
    customer_id,
    key_id,
    request_id,
    model: PUSHER.slug,
    idempotency_key: null,
    params,
  };
  const receiver = { db, blobs: t.blobs, reads: createSlots(1), quotas: QUOTAS };
  const rules = { model: PUSHER, defaults: params.defaults, allowPrivateUrls: false };
  const reception = { datasetId: id, customerId: customer_id, onInvalid: "skip" as const, rules };
  async function* chunks(): AsyncGenerator<Buffer> {
    yield Buffer.from(lines(rowsOf(count)));
  }
  try {
    await beginDataset(db, dataset, QUOTAS);
    await receiveBody(receiver, reception, { part: "manifest", chunks: chunks() });
  } catch (error) {
    await rejectDataset(db, id, "refused");
    if (error instanceof ApiError && error.code === "too_many_datasets") return null;
    throw error;
  }
  await finishReceiving(db, id, { fingerprint: Buffer.alloc(32), start: false, message: null });
  return id;
}

describe("datasets that have not ended", () => {
  test("are so many at most; the answer says how many and what to do, and another customer does not notice", async () => {
    const made: string[] = [];
    for (let n = 0; n < QUOTAS.datasets; n++)
      made.push((await send(1, {}, { "idempotency-key": `key-${n}` })).json().id);
    const refused = await send(1);
    expect(refused.statusCode).toBe(409);
    expect(refused.json()).toMatchObject({ error: { code: "too_many_datasets" } });
    expect(refused.json().detail).toMatch(/at most 4 datasets that have not ended, got 5 .*cancel/);
    // Nothing new is made by these.
    const again = await send(1, {}, { "idempotency-key": "key-0" });
    expect([again.statusCode, again.json().id]).toEqual([200, made[0]]);

    const other = await t.newKey();
    expect((await sendRows(t, other.api_key, rowsOf(1), { start: false })).statusCode).toBe(201);
    await end(idOf(made[0] ?? ""));
    expect((await send(1)).statusCode).toBe(201);
    expect((await send(1)).statusCode).toBe(409);
  });

  test("have so many rows together at most; one that goes beyond is refused whole and takes nothing", async () => {
    const first = (await send(20)).json().id;
    const refused = await send(11);
    expect([refused.statusCode, refused.json().error.code]).toEqual([409, "too_many_datasets"]);
    expect(refused.json().detail).toMatch(/at most 30 rows in all datasets that have not ended, got 31/);
    expect(await used()).toEqual({ datasets: 1, rows: 20 });
    expect((await send(10)).statusCode).toBe(201);
    // Before it has any rows.
    expect((await send(1)).json().detail).toMatch(/at most 30 rows/);
    await end(idOf(first));
    expect((await send(20)).statusCode).toBe(201);
  });

  test("a retry of one that ended counts as one more", async () => {
    const id = idOf((await send(2)).json().id);
    await t.db.query(`UPDATE dataset_rows SET state = 'cancelled', finished_at = now() WHERE dataset_id = $1`, [id]);
    await t.db.query(`UPDATE datasets SET rows_pending = 0, rows_cancelled = 2 WHERE id = $1`, [id]);
    await end(id, "completed");
    const retry = () =>
      t.app.inject({
        method: "POST",
        url: `/v1/datasets/${id}/retry`,
        headers: { authorization: `Bearer ${key.api_key}` },
      });
    const full = idOf((await send(29)).json().id);
    expect((await retry()).json()).toMatchObject({ error: { code: "too_many_datasets" } });
    expect((await getWithKey(t.app, `/v1/datasets/${id}`, key.api_key)).json()).toMatchObject({ state: "completed" });
    await end(full);
    expect((await retry()).json()).toMatchObject({ state: "running" });
  });

  test("many at once fill both quotas exactly and never pass them", async () => {
    const many = await Promise.all(Array.from({ length: 16 }, () => make(1)));
    expect(many.filter((id) => id !== null)).toHaveLength(QUOTAS.datasets);
    const other = await t.newKey();
    const large = await Promise.all(Array.from({ length: 3 }, () => make(16, other)));
    expect(large.filter((id) => id !== null)).toHaveLength(1);
    expect(await used(other)).toEqual({ datasets: 1, rows: 16 });
  });

  test.for([1, 2, 3])("in any order of making and ending, at any moment (seed %i)", async (seed) => {
    const random = seededRandom(seed);
    const whose = await t.newKey();
    const alive = new Set<DatasetId>();
    const alone: { readonly made: boolean; readonly fits: boolean }[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const before = await used(whose);
      const counts = Array.from({ length: round % 2 === 0 ? random.integer(2, 6) : 1 }, () => random.integer(1, 14));
      const made = await Promise.all(counts.map((count) => make(count, whose)));
      const after = await used(whose);
      expect(after.datasets).toBeLessThanOrEqual(QUOTAS.datasets);
      expect(after.rows).toBeLessThanOrEqual(QUOTAS.rows);
      for (const id of made) if (id) alive.add(id);
      expect(after.datasets).toBe(alive.size);
      // Alone it is refused only where there is no room; among others, also while one holds a place that comes to nothing.
      const fits = before.datasets < QUOTAS.datasets && before.rows + (counts[0] ?? 0) <= QUOTAS.rows;
      if (counts.length === 1) alone.push({ made: made[0] !== null, fits });
      for (const id of alive) {
        if (random.next() < 0.5) continue;
        await end(id);
        alive.delete(id);
      }
    }
    expect(alone).toHaveLength(ROUNDS / 2);
    for (const { made, fits } of alone) expect(made).toBe(fits);
  });
});

const upload = async (apiKey = key.api_key) =>
  postForm(t.app, "/v1/uploads", apiKey, [{ name: "file", body: await framePng() }]);
const list = (query = "") => getWithKey(t.app, `/v1/uploads${query}`, key.api_key);
const remove = (id: string, apiKey = key.api_key) =>
  t.app.inject({ method: "DELETE", url: `/v1/uploads/${id}`, headers: { authorization: `Bearer ${apiKey}` } });

describe("uploads", () => {
  test("are so many at most; deleting one makes room, and its bytes are gone", async () => {
    const made = [];
    for (let n = 0; n < UPLOADS; n++) made.push((await upload()).json());
    const refused = await upload();
    expect([refused.statusCode, refused.json().error.code]).toEqual([409, "too_many_uploads"]);
    expect(refused.json().detail).toMatch(/at most 5 uploads, got 6 with this one: delete some/);
    const id = made[0].id;
    expect(await t.blobs.info(blobKeys.upload(id))).not.toBeNull();
    expect((await remove(id)).json()).toEqual({ id, object: "upload", deleted: true });
    expect(await t.blobs.info(blobKeys.upload(id))).toBeNull();
    expect((await remove(id)).statusCode).toBe(404);
    expect((await upload()).statusCode).toBe(201);
    const named = await sendRows(t, key.api_key, [urlRow(), urlRow({ start_frame: { upload: id } })]);
    expect(named.json().problems).toMatchObject([{ line: 2, code: "upload_not_found" }]);
  });

  test("are listed newest first, by cursor, each once; another customer's are not there and cannot be deleted", async () => {
    const other = await t.newKey();
    const theirs = (await upload(other.api_key)).json().id;
    const made: string[] = [];
    for (let n = 0; n < UPLOADS; n++) made.push((await upload()).json().id);
    const seen: string[] = [];
    for (let query = "?limit=2"; ;) {
      const page = (await list(query)).json();
      expect(page.data.length).toBeLessThanOrEqual(2);
      seen.push(...page.data.map((each: { id: string }) => each.id));
      expect(page.has_more).toBe(page.next !== null);
      if (page.next === null) break;
      query = `?limit=2&after=${page.next}`;
    }
    expect(seen).toEqual(made.toReversed());
    const [newest] = (await list()).json().data;
    expect(newest).toMatchObject({
      object: "upload",
      bytes: (await framePng()).length,
      sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
    });

    expect((await list(`?after=${theirs}`)).json()).toMatchObject({ error: { code: "upload_not_found" } });
    expect((await list("?after=x")).statusCode).toBe(404);
    expect((await list("?before=x")).statusCode).toBe(422);
    expect((await remove(theirs)).statusCode).toBe(404);
    expect(await t.blobs.info(blobKeys.upload(theirs))).not.toBeNull();
  });

  test("many at once fill the quotas exactly, by number and by bytes", async () => {
    const parts = { db, blobs: t.blobs, random: randomBytes };
    const store = (quotas: { uploads: number; bytes: number }, whose: CreatedKey) =>
      Promise.allSettled(
        Array.from({ length: 12 }, () => storeUpload({ ...parts, quotas }, whose.customer_id, Buffer.alloc(100))),
      );
    for (const quotas of [
      { uploads: 5, bytes: 1_000_000 },
      { uploads: 100, bytes: 599 },
    ]) {
      const whose = await t.newKey();
      const results = await store(quotas, whose);
      const kept = results.flatMap((result) => (result.status === "fulfilled" ? [result.value.id] : []));
      expect(kept).toHaveLength(5);
      const refused = results.flatMap((result) => (result.status === "rejected" ? [result.reason.code] : []));
      expect(new Set(refused)).toEqual(new Set(["too_many_uploads"]));
      const [id] = kept;
      expect(id && (await deleteUpload(parts, whose.customer_id, id))).toBe(true);
      expect((await store(quotas, whose)).filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    }
  });

  test("a process that dies between deleting the bytes and the row leaves one that is deleted once more", async () => {
    const { id } = (await upload()).json();
    await t.blobs.delete(blobKeys.upload(id));
    expect((await remove(id)).statusCode).toBe(200);
    expect((await list()).json().data).toEqual([]);
  });
});
