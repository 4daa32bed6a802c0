/** Prices as customers meet them: on the catalogue, in their own notice, on the bill. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { type NewPrice, setPrice } from "#billing/prices.ts";
import { mils } from "#contract/mils.ts";
import { systemClock } from "#platform/clock.ts";

import { getWithKey, postForm, predictParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const DAY_MS = 86_400_000;

let t: TestGateway;
/** Added to the gateway's clock, which says how long a price is kept for the catalogue. */
let later = 0;
beforeAll(async () => {
  t = await startTestGateway({ clock: { now: () => Date.now() + later } });
});
afterAll(() => t.stop());

const set = (change: Partial<NewPrice>) =>
  setPrice(
    t.db,
    {
      customer_id: null,
      mils_per_frame: 5,
      effective_from: null,
      note: "a test",
      operator: "tester",
      override_reason: null,
      ...change,
    },
    systemClock,
  );

const get = async (url: string) => (await t.app.inject({ url })).json();

test("a customer reads their price, the list's, and every change that is coming", async () => {
  const key = await t.newKey();
  const other = await t.newKey();
  const [soon, end] = [new Date(Date.now() + 31 * DAY_MS), new Date(Date.now() + 40 * DAY_MS)];
  await set({ customer_id: key.customer_id, mils_per_frame: 3 });
  await set({ customer_id: key.customer_id, mils_per_frame: null, effective_from: end });
  await set({ mils_per_frame: 6, effective_from: soon });

  expect((await getWithKey(t.app, "/v1/billing/prices", key.api_key)).json()).toEqual({
    customer_id: key.customer_id,
    mils_per_frame: 3,
    usd_per_frame: 0.0003,
    list: { mils_per_frame: 5, usd_per_frame: 0.0005 },
    changes: [
      {
        mils_per_frame: 6,
        usd_per_frame: 0.0006,
        effective_from: end.toISOString(),
        effective_from_ts: end.getTime() / 1000,
      },
    ],
  });
  expect((await getWithKey(t.app, "/m/arm/v1/billing/prices", other.api_key)).json()).toMatchObject({
    mils_per_frame: 5,
    changes: [{ mils_per_frame: 6, effective_from: soon.toISOString() }],
  });
  expect((await t.app.inject({ url: "/v1/billing/prices" })).statusCode).toBe(401);
});

test("the catalogue shows the list price in force, whatever somebody's own price is", async () => {
  expect(await get("/v1/specs")).toMatchObject({
    default_price_usd_per_frame: 0.0005,
    specs: [{ price_per_frame_usd: 0.0005 }, { price_per_frame_usd: 0.0005 }],
  });
  await set({ mils_per_frame: 4 });
  later += 60_000;
  expect(await get("/v1/specs")).toMatchObject({ default_price_usd_per_frame: 0.0004 });
  expect(await get("/v1/models/arm")).toMatchObject({ price_per_frame_usd: 0.0004 });
});

test("a committed price is what the next rollout costs, and what a failed one gives back", async () => {
  const key = await t.newKey(mils(1_000));
  await set({ customer_id: key.customer_id, mils_per_frame: 2 });
  const done = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  expect(done.statusCode).toBe(200);
  expect(done.headers["x-dreamengine-estimated-charge-usd"]).toBe("0.0098");

  t.worker.fate = { fail: "engine_failed" };
  const failed = await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "2" }));
  expect(failed.statusCode).toBe(500);
  const balance = (await getWithKey(t.app, "/v1/billing/balance", key.api_key)).json();
  expect(balance).toMatchObject({ balance_mils: 1_000 - 98 });
});
