/** A rollout whose files retention has deleted: shown with what is left of it, its video gone for good and said so. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";

import { booksOf } from "./support/books.ts";
import { getWithKey, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway({ config: { RETENTION_DAYS: 2 } });
});
afterAll(() => t.stop());

async function deleteFiles(id: string): Promise<void> {
  const [row] = await t.db.query<{ result: { video_keys: string[] } }>("SELECT result FROM rollouts WHERE id = $1", [
    id,
  ]);
  for (const key of row?.result.video_keys ?? []) await t.blobs.delete(key);
  await t.db.query("UPDATE rollouts SET files_deleted_at = now() WHERE id = $1", [id]);
}

test("says until when it is kept, and afterwards has no link; an old link is 410, and one that was never ours still 403", async () => {
  const key = await t.newKey();
  const made = (await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"))).json();
  expect(made.expires_at - made.finished).toBe(2 * 86_400);
  const link = new URL(made.video_url);
  expect((await t.app.inject({ url: link.pathname + link.search })).statusCode).toBe(200);

  await deleteFiles(made.id);
  const shown = (await getWithKey(t.app, `/v1/rollouts/${made.id}`, key.api_key)).json();
  expect(shown).toMatchObject({
    status: "succeeded",
    video_url: null,
    video_urls: [],
    video_url_expires_at: null,
    expires_at: made.expires_at,
    cost_mils: 245,
  });
  const gone = await t.app.inject({ url: link.pathname + link.search });
  expect(gone.statusCode).toBe(410);
  expect(gone.json().error.code).toBe("video_expired");
  const forged = await t.app.inject({ url: `${link.pathname}${link.search.replace(/signature=./, "signature=")}` });
  expect(forged.statusCode).toBe(403);
});

test("repeated under its Idempotency-Key: told of it without its video, not charged again", async () => {
  const key = await t.newKey(mils(245));
  const header = { "idempotency-key": "kept" };
  const made = (await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header)).json();
  await deleteFiles(made.id);
  for (const params of ["{}", '{"mode":"async"}']) {
    const again = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts(params), header);
    expect(again.statusCode).toBe(200);
    expect(again.json()).toMatchObject({ id: made.id, status: "succeeded", video_url: null });
  }
  // Where the answer would be the video itself.
  const video = await postForm(t.app, "/v1/predict", key.api_key, await predictParts(), header);
  expect(video.statusCode).toBe(410);
  expect(video.json().error.code).toBe("video_expired");
  expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
});

test("that did not reach its customer is dreamt again by whoever repeats the request", async () => {
  const key = await t.newKey(mils(490));
  const first = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  const id = String(first.headers["x-dreamengine-rollout-id"]);
  await t.db.query("UPDATE rollouts SET delivered_at = NULL WHERE id = $1", [id]);
  await deleteFiles(id);
  const again = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  expect(again.statusCode).toBe(200);
  expect(again.headers["x-dreamengine-rollout-id"]).not.toBe(id);
});
