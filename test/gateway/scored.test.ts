/** Scored rollouts at the gateway: another payload at the same price, in the bulk lane, whoever waits; shown with its score. */
import { afterAll, beforeAll, expect, test } from "vitest";

import type { CreatedKey } from "#keys/keys.ts";

import { accept } from "../support/ledger.ts";
import { getWithKey, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { SCRIPTED_SCORE } from "./support/scripted-worker.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
});
afterAll(() => t.stop());

const post = async (params: string, headers: Record<string, string> = {}) =>
  postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts(params), headers);

const predict = async (fields: Record<string, string>) =>
  postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "3", ...fields }));

async function stored(id: string) {
  const [row] = await t.db.query(
    `SELECT lane, scored, waiter_id IS NOT NULL AS waited_for, charge_mils::int AS charge, refunded_mils::int AS refunded
       FROM rollouts WHERE id = $1`,
    [id],
  );
  return row;
}

test("a synchronous one is in the bulk lane, and costs what the video costs", async () => {
  const answer = await post('{"score": true, "seed": 1}');
  expect(answer.statusCode).toBe(200);
  const envelope = answer.json();
  expect(envelope).toMatchObject({ status: "succeeded", mode: "sync", cost_mils: 245, ...SCRIPTED_SCORE });
  expect(await stored(envelope.id)).toEqual({
    lane: "bulk",
    scored: true,
    waited_for: true,
    charge: 245,
    refunded: 0,
  });
});

test("an unscored one is another payload, and stays in the realtime lane without a score", async () => {
  const [scored, plain] = [await post('{"score": true, "seed": 2}'), await post('{"score": false, "seed": 2}')];
  expect(plain.json()).toMatchObject({ psnr_db: null, ssim: null, lpips: null, cost_mils: 245 });
  expect(await stored(plain.json().id)).toMatchObject({ lane: "realtime", scored: false });
  expect(plain.json().id).not.toBe(scored.json().id);
  const prints = await t.db.query("SELECT DISTINCT fingerprint FROM rollouts WHERE id = ANY ($1)", [
    [scored.json().id, plain.json().id],
  ]);
  expect(prints).toHaveLength(2);
});

test("under an idempotency key its score comes again at no charge, and without `score` it is another payload", async () => {
  const headers = { "idempotency-key": "scored-once" };
  const [first, again] = [await post('{"score": true}', headers), await post('{"score": true}', headers)];
  expect(again.json()).toMatchObject({ id: first.json().id, ...SCRIPTED_SCORE });
  const plain = await post("{}", headers);
  expect([plain.statusCode, plain.json().error.code]).toEqual([422, "idempotency_mismatch"]);
});

test("POST /v1/predict says its score in headers, and has none of what was not scored", async () => {
  const { headers } = await predict({ score: "True" });
  expect([headers["x-dreamengine-psnr-db"], headers["x-dreamengine-ssim"], headers["x-dreamengine-lpips"]]).toEqual(
    Object.values(SCRIPTED_SCORE).map(String),
  );
  expect(headers["x-dreamengine-estimated-charge-usd"]).toBe("0.0245");
  const plain = await predict({});
  expect(plain.statusCode).toBe(200);
  expect(Object.keys(plain.headers)).not.toContain("x-dreamengine-psnr-db");
});

test("an asynchronous one shows its score where it is asked for and in the list, once it has one", async () => {
  t.worker.fate = "hang";
  const submitted = await post('{"score": true, "mode": "async", "seed": 4}');
  expect(submitted.statusCode).toBe(202);
  const { id } = submitted.json();
  expect(submitted.json()).toMatchObject({ status: "queued", psnr_db: null, ssim: null, lpips: null });
  await t.worker.finishHanging();
  t.worker.fate = "succeed";
  const shown = await getWithKey(t.app, `/v1/rollouts/${id}?wait=10`, key.api_key);
  expect(shown.json()).toMatchObject({ id, status: "succeeded", ...SCRIPTED_SCORE });
  const { data } = (await getWithKey(t.app, "/v1/rollouts?limit=1", key.api_key)).json();
  expect(data).toMatchObject([{ id, ...SCRIPTED_SCORE }]);
});

test("one that cannot be scored is refunded in full, without a score", async () => {
  t.worker.fate = { fail: "internal" };
  const answer = await post('{"score": true, "mode": "async", "seed": 5}');
  const shown = (await getWithKey(t.app, `/v1/rollouts/${answer.json().id}?wait=10`, key.api_key)).json();
  t.worker.fate = "succeed";
  expect(shown).toMatchObject({ status: "failed", cost_mils: 0, refunded_mils: 245, psnr_db: null });
});

test("the database takes no scored rollout in the realtime lane or with several candidates", async () => {
  for (const wrong of [{ lane: "realtime" }, { lane: "bulk", k: 2 }] as const) {
    await expect(accept(t.db, key, { ...wrong, scored: true })).rejects.toThrow("rollouts_scored");
  }
  await expect(accept(t.db, key, { lane: "bulk", scored: true })).resolves.toMatchObject({ scored: true });
});
