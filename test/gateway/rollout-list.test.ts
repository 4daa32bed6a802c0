/** `GET /v1/rollouts`: pages, filters, and what belongs in no other customer's hands. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { type DatasetId, newDatasetId, type RolloutId } from "#contract/ids.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, dispatch, failed, succeeded } from "#test/support/ledger.ts";

import { getWithKey } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let key: CreatedKey;
/** Oldest first: 30 of which every third failed, then one queued, one dispatched and one cancelled. */
const ids: RolloutId[] = [];
let dataset: DatasetId;
const ofDataset: RolloutId[] = [];

beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
  dataset = newDatasetId(randomBytes);
  await newDataset(dataset, key);
  // Several in one transaction have the same time, to the microsecond.
  await t.db.transaction(async (tx) => {
    for (let n = 0; n < 30; n++) {
      const { id } = await accept(tx, key, { model: n % 2 === 0 ? "pusher" : "arm" });
      ids.push(id);
      await dispatch(tx, id);
      await settle(tx, id, 1, n % 3 === 0 ? failed() : succeeded());
    }
    for (let row = 1; row <= 5; row++) {
      ofDataset.push((await accept(tx, key, { route: "dataset", lane: "bulk", dataset: { id: dataset, row } })).id);
    }
  });
  for (let n = 0; n < 3; n++) ids.push((await accept(t.db, key, { model: "pusher", lane: "bulk" })).id);
  const [, dispatched, off] = ids.slice(-3);
  if (!dispatched || !off) throw new Error("too few rollouts");
  await dispatch(t.db, dispatched);
  await settle(t.db, off, null, cancelled);
});
afterAll(() => t.stop());

async function newDataset(id: DatasetId, owner: CreatedKey): Promise<void> {
  await t.db.query(
    `INSERT INTO datasets (id, customer_id, key_id, request_id, model, on_invalid, fingerprint)
     VALUES ($1, $2, $3, 'req_test', 'pusher', 'skip', sha256('x'))`,
    [id, owner.customer_id, owner.key_id],
  );
}

interface Listed {
  readonly id: string;
  readonly status: string;
  readonly model: string;
  readonly created: number;
}
interface List {
  readonly object: string;
  readonly data: readonly Listed[];
  readonly has_more: boolean;
  readonly next: string | null;
}

async function list(query = "", apiKey = key.api_key): Promise<List> {
  const answer = await getWithKey(t.app, `/v1/rollouts${query}`, apiKey);
  expect(answer.statusCode).toBe(200);
  return answer.json();
}

async function all(query: string): Promise<Listed[]> {
  const found: Listed[] = [];
  for (let after = ""; ;) {
    const page = await list(`?${query}${after}`);
    found.push(...page.data);
    expect(page.has_more).toBe(page.next !== null);
    if (page.next === null) return found;
    after = `&after=${page.next}`;
  }
}

const sorted = (found: readonly { readonly id: string }[]): string[] => found.map(({ id }) => id).toSorted();

test("lists newest first, twenty at a time, each once, whatever the pages' size", async () => {
  const first = await list();
  expect(first).toMatchObject({ object: "list", has_more: true });
  expect(first.data).toHaveLength(20);
  expect(first.data.slice(0, 3).map(({ id }) => id)).toEqual(ids.slice(-3).toReversed());
  expect(first.next).toBe(first.data[19]?.id);
  for (const limit of [1, 7, 33, 200]) {
    const found = await all(`limit=${limit}`);
    expect(sorted(found)).toEqual(ids.toSorted());
    expect(found.map(({ created }) => created)).toEqual(found.map(({ created }) => created).toSorted((a, b) => b - a));
  }
});

test("what comes meanwhile does not move the pages after it", async () => {
  const own = await t.newKey();
  const older = await Promise.all(Array.from({ length: 5 }, () => accept(t.db, own)));
  const first = await list("?limit=2", own.api_key);
  await accept(t.db, own);
  const rest = await list(`?limit=10&after=${first.next}`, own.api_key);
  expect(sorted([...first.data, ...rest.data])).toEqual(sorted(older));
});

test("filters by status, as it is shown", async () => {
  const failures = ids.slice(0, 30).filter((_, n) => n % 3 === 0);
  expect(sorted(await all("limit=4&status=failed"))).toEqual(failures.toSorted());
  expect(await all("status=succeeded")).toHaveLength(20);
  expect(sorted(await all("status=cancelled"))).toEqual([ids.at(-1)]);
  expect(await all("status=expired")).toEqual([]);
  // One that is dispatched shows as queued until a worker has it in hand.
  expect(sorted(await all("status=queued"))).toEqual([ids.at(-3) ?? "", ids.at(-2) ?? ""].toSorted());
  expect(await all("status=running")).toEqual([]);
  await t.queues.signals.publish({ kind: "progress", rollout_id: ids.at(-2) ?? "", frames: 3 });
  await expect
    .poll(() => all("status=running"), { timeout: 5_000 })
    .toMatchObject([{ id: ids.at(-2), status: "running" }]);
  expect(sorted(await all("status=queued"))).toEqual([ids.at(-3)]);
});

test("filters by model and time, together", async () => {
  expect(await all("limit=5&model=arm")).toHaveLength(15);
  expect(await all("model=unheard-of")).toEqual([]);
  const now = Date.now() / 1000;
  expect(await all(`created_after=${now + 60}`)).toEqual([]);
  expect(await all(`created_before=${now - 3600}`)).toEqual([]);
  expect(sorted(await all(`limit=3&created_after=${now - 600}&created_before=${now + 60}`))).toEqual(ids.toSorted());
  const [{ at } = { at: 0 }] = await t.db.query<{ at: number }>(
    `SELECT extract(epoch FROM date_trunc('milliseconds', created_at))::float8 AS at FROM rollouts WHERE id = $1`,
    [ids.at(-2)],
  );
  // From that moment on, and before it: between them nothing is missing, nothing twice.
  const [later, earlier] = [await all(`created_after=${at}`), await all(`created_before=${at}`)];
  expect(sorted([...later, ...earlier])).toEqual(ids.toSorted());
  expect(sorted(later)).toEqual([ids.at(-2) ?? "", ids.at(-1) ?? ""].toSorted());
  expect(await all("limit=9&model=pusher&status=failed")).toHaveLength(5);
});

test("rows of a dataset are listed when it is named, and only then", async () => {
  expect(sorted(await all("limit=200"))).not.toContain(ofDataset[0]);
  const rows = await all(`limit=2&dataset=${dataset}`);
  expect(sorted(rows)).toEqual(ofDataset.toSorted());
  expect(rows[0]).toMatchObject({ mode: "dataset", dataset: { id: dataset, row: expect.any(Number) } });
});

test("belongs to its customer alone", async () => {
  const other = await t.newKey();
  expect((await list("", other.api_key)).data).toEqual([]);
  const theirs = newDatasetId(randomBytes);
  await newDataset(theirs, other);
  for (const query of [`dataset=${theirs}`, `dataset=${newDatasetId(randomBytes)}`, "dataset=nonsense"]) {
    const answer = await getWithKey(t.app, `/v1/rollouts?${query}`, key.api_key);
    expect(answer.statusCode).toBe(404);
    expect(answer.json().error.code).toBe("dataset_not_found");
  }
  const foreign = await getWithKey(t.app, `/v1/rollouts?after=${ids[0]}`, other.api_key);
  expect(foreign.statusCode).toBe(422);
  expect(foreign.json().detail).toBe("after: expected the id of a rollout of yours, as `next` of a page gives it");
  expect((await t.app.inject({ url: "/v1/rollouts" })).statusCode).toBe(401);
});

test.for([
  "limit=0",
  "limit=201",
  "limit=ten",
  "status=done",
  "after=rollout_1",
  "created_after=yesterday",
  "created_after=-1",
])("%s is refused", async (query) => {
  const answer = await getWithKey(t.app, `/v1/rollouts?${query}`, key.api_key);
  expect(answer.statusCode).toBe(422);
});

test.for([
  ["/v1/rollouts?statis=failed", "statis: there is no such parameter, expected limit, after, status, model, "],
  ["/v1/datasets?limit=1&status=running", "status: there is no such parameter, expected limit, after, state"],
  ["/v1/datasets/dataset_0/rows?status=failed", "status: there is no such parameter, expected limit, after, state"],
  [
    "/v1/webhooks/deliveries?status=failed",
    "status: there is no such parameter, expected endpoint, rollout, dataset, ",
  ],
] as const)("a filter that does not exist is refused, naming those that do: %s", async ([url, message]) => {
  const answer = await getWithKey(t.app, url, key.api_key);
  expect(answer.statusCode).toBe(422);
  expect(answer.json().detail).toContain(message);
});

test("a synchronous rollout is in the list like any other", async () => {
  const own = await t.newKey();
  const { id } = await accept(t.db, own, { waiter_id: "gateway_test" });
  expect((await list("", own.api_key)).data).toMatchObject([{ id, mode: "sync", status: "queued" }]);
});
