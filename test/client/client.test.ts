/** The gateway as the published client sees it; what stands behind the gateway here is a script, not an engine. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";

import { type PayingGateway, startPayingGateway } from "../billing/support.ts";
import { startTestGateway, type TestGateway } from "../gateway/support/test-gateway.ts";
import { httpEndpoint } from "../support/stripe/deliveries.ts";
import { type ClientCheck, clientCheckNames, runClientSuite } from "./run-client-suite.ts";

/** Of the first run, which installs the client. */
const SUITE_TIMEOUT_MS = 10 * 60_000;

let gateway: TestGateway;
let paying: PayingGateway;
let checks: readonly ClientCheck[] = [];

beforeAll(async () => {
  gateway = await startTestGateway();
  const { url } = await gateway.listen();
  paying = await startPayingGateway();
  const cards = await paying.t.listen();
  paying.stripe.deliverTo(httpEndpoint(cards.url));
  const [key, poor, slow] = await Promise.all([
    gateway.newKey(),
    gateway.newKey(mils(3)),
    gateway.newKey(mils(3), { rate_per_s: 1, burst: 1 }),
  ]);
  checks = await runClientSuite({
    baseUrl: url,
    apiKey: key.api_key,
    poorApiKey: poor.api_key,
    slowApiKey: slow.api_key,
    topup: { baseUrl: cards.url, apiKey: (await paying.t.newKey()).api_key },
    actionRange: [-1, 1],
  });
}, SUITE_TIMEOUT_MS);
afterAll(async () => {
  await paying.stop();
  await gateway.stop();
});

test.for(await clientCheckNames())("the published client %s", (name) => {
  const check = checks.find((one) => one.name === name);
  expect(check, `${name} did not run`).toBeDefined();
  expect(check?.error ?? null).toBeNull();
});
