/** What `POST /v1/datasets/{id}/resume` takes for a budget: what was sent, never what it could be read as. */
import { afterAll, beforeAll, expect, test } from "vitest";

import type { CreatedKey } from "#keys/keys.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

import { lines, sendDataset } from "./support/send.ts";

let t: TestGateway;
let key: CreatedKey;
let id: string;
beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
  const url = "https://example.com/a";
  const row = { start_frame: { url }, actions: { url }, num_actions: 12 };
  const made = await sendDataset(t, key.api_key, { name: "manifest", body: lines([row]) }, { start: false });
  ({ id } = made.json());
});
afterAll(() => t.stop());

const resume = (payload: object) =>
  t.app.inject({
    method: "POST",
    url: `/v1/datasets/${id}/resume`,
    headers: { authorization: `Bearer ${key.api_key}` },
    payload,
  });

test.for([
  [{ budget_mils: null }, "body.budget_mils: expected an integer, got null"],
  [{ budget_mils: "5" }, 'body.budget_mils: expected an integer, got "5"'],
  [{ budget_mils: true }, "body.budget_mils: expected an integer, got true"],
  [{ budget_usd: true }, "body.budget_usd: expected a number or a string, got true"],
  [{ budget_usd: [25] }, "body.budget_usd: expected a number or a string, got [25]"],
  [{ budget: 25 }, "body.budget: there is no such field, expected budget_mils, budget_usd"],
] as const)("%j is refused, and the dataset still waits", async ([payload, message]) => {
  const answer = await resume(payload);
  expect([answer.statusCode, answer.json().error?.message]).toEqual([422, message]);
  expect(await t.db.query(`SELECT state, budget_mils FROM datasets WHERE id = $1`, [id])).toEqual([
    { state: "ready", budget_mils: null },
  ]);
});

test.for([{ budget_usd: "25.50" }, { budget_usd: 25.5 }])("%j is a budget", async (payload) => {
  await t.db.query(`UPDATE datasets SET state = 'ready', started_at = NULL, resting_since = now() WHERE id = $1`, [id]);
  const answer = await resume(payload);
  expect([answer.statusCode, answer.json().cost?.budget_mils]).toEqual([200, 255_000]);
});
