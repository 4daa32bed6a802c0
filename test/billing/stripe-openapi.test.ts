/**
 * Every request that we make of Stripe, once more against stripe-mock: a parameter that Stripe's published OpenAPI does not
 * know, or knows as another type, is refused there. The stand-in itself would take anything.
 */
import { expect, test } from "vitest";

import { reconcile } from "#billing/reconcile.ts";
import { mils } from "#contract/mils.ts";
import { systemClock } from "#platform/clock.ts";
import { silentLog } from "#test/support/postgres.ts";
import { buildStripeMock, startStripeMock } from "#test/support/stripe/mock.ts";
import type { Recorded } from "#test/support/stripe/stand-in.ts";

import { startPayingGateway } from "./support.ts";

/** Of the first run, which builds it. */
const TIMEOUT_MS = 6 * 60_000;

test("every request that we make is one that Stripe's OpenAPI allows", { timeout: TIMEOUT_MS }, async (context) => {
  const built = await buildStripeMock();
  if ("missing" in built) {
    context.skip(built.missing);
    return;
  }
  const requests = await everyRequestWeMake();
  const kinds = new Set(requests.map(({ method, path }) => `${method} ${path.replace(/\/(pi|du)_\w+/, "/:id")}`));
  expect([...kinds].sort()).toEqual([
    "GET /v1/checkout/sessions",
    "GET /v1/disputes",
    "GET /v1/disputes/:id",
    "GET /v1/events",
    "GET /v1/payment_intents/:id",
    "GET /v1/refunds",
    "POST /v1/checkout/sessions",
    "POST /v1/customers",
  ]);
  const mock = await startStripeMock(built.program);
  try {
    for (const request of requests) {
      const { status, text } = await replay(mock.url, request);
      expect([request.method, request.path, request.encoded, status, status === 200 ? "" : text]).toEqual([
        request.method,
        request.path,
        request.encoded,
        200,
        "",
      ]);
    }
    // And it does check: a parameter that does not exist is refused.
    const [session] = requests.filter(({ method, path }) => method === "POST" && path.endsWith("/sessions"));
    if (!session) throw new Error("no session was asked for");
    expect((await replay(mock.url, { ...session, encoded: `${session.encoded}&amount_cents=1` })).status).toBe(400);
  } finally {
    await mock.stop();
  }
});

async function everyRequestWeMake(): Promise<readonly Recorded[]> {
  const g = await startPayingGateway();
  try {
    const key = await g.t.newKey(mils(0));
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 100);
    const dispute = g.stripe.books.dispute(payment);
    await g.stripe.flush(g.endpoint);
    // What is not in the lists is asked for by name.
    g.stripe.books.sessions.clear();
    Object.assign(g.stripe.books.disputes.get(dispute) ?? {}, { created: 1_600_000_000 });
    await reconcile({ db: g.t.db, stripe: g.client, clock: systemClock, log: silentLog }, { days: 30 });
    return [...g.stripe.requests];
  } finally {
    await g.stop();
  }
}

async function replay(url: string, { method, path, encoded }: Recorded): Promise<{ status: number; text: string }> {
  const answer = await fetch(`${url}${path}${method === "GET" && encoded !== "" ? `?${encoded}` : ""}`, {
    method,
    headers: { authorization: "Bearer sk_test_123", "content-type": "application/x-www-form-urlencoded" },
    ...(method === "POST" ? { body: encoded } : {}),
  });
  return { status: answer.status, text: await answer.text() };
}
