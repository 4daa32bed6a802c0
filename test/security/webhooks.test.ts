/** Whoever knows no signing secret cannot make money, and whoever records a webhook cannot make it twice. */
import { createHmac } from "node:crypto";

import { afterAll, beforeEach, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { type PayingGateway, startPayingGateway } from "#test/billing/support.ts";
import { TEST_WEBHOOK_SECRET } from "#test/support/stripe/stand-in.ts";

const CENTS = 2_500;

let p: PayingGateway;
let key: CreatedKey;
let event: unknown;
beforeAll(async () => {
  p = await startPayingGateway();
});
afterAll(() => p.stop());
/** A customer who has paid, and the event that says so, not yet delivered. */
beforeEach(async () => {
  p.stripe.drop();
  key = await p.t.newKey(mils(1_000));
  p.stripe.books.pay(await p.session(key.api_key, CENTS));
  event = p.stripe.outbox.find(({ type }) => type === "checkout.session.completed");
  expect(event).toBeDefined();
});

const balance = async (): Promise<bigint> => (await p.accounts(key.customer_id)).balance_mils;
const sign = (body: string, timestamp: number, secret: string): string =>
  `t=${timestamp},v1=${createHmac("sha256", secret).update(`${timestamp}.${body}`).digest("hex")}`;
const now = (): number => Math.floor(Date.now() / 1000);

describe("a forged webhook", () => {
  test.each<[string, (body: string) => { body: string; signature: string }]>([
    ["without a signature", (body) => ({ body, signature: "" })],
    ["signed with nothing", (body) => ({ body, signature: sign(body, now(), "") })],
    ["signed with another secret", (body) => ({ body, signature: sign(body, now(), "whsec_guess") })],
    ["signed with the secret's name", (body) => ({ body, signature: sign(body, now(), "STRIPE_WEBHOOK_SECRET") })],
    [
      "whose secret lacks its last character",
      (body) => ({ body, signature: sign(body, now(), TEST_WEBHOOK_SECRET.slice(0, -1)) }),
    ],
    [
      "signed for other bytes",
      (body) => ({ body: body.replace(String(CENTS), "999900"), signature: sign(body, now(), TEST_WEBHOOK_SECRET) }),
    ],
    ["with one space more", (body) => ({ body: `${body} `, signature: sign(body, now(), TEST_WEBHOOK_SECRET) })],
    ["of an hour ago", (body) => ({ body, signature: sign(body, now() - 3_600, TEST_WEBHOOK_SECRET) })],
    ["of tomorrow", (body) => ({ body, signature: sign(body, now() + 86_400, TEST_WEBHOOK_SECRET) })],
    ["of the end of time", (body) => ({ body, signature: sign(body, 99_999_999_999, TEST_WEBHOOK_SECRET) })],
    [
      "whose timestamp is no number",
      (body) => ({ body, signature: sign(body, now(), TEST_WEBHOOK_SECRET).replace(/t=\d+/, "t=now") }),
    ],
    [
      "with two timestamps",
      (body) => ({ body, signature: `t=${now()},${sign(body, now() - 3_600, TEST_WEBHOOK_SECRET)}` }),
    ],
    [
      "with the old scheme",
      (body) => ({ body, signature: sign(body, now(), TEST_WEBHOOK_SECRET).replace("v1=", "v0=") }),
    ],
    [
      "with a signature in capitals cut short",
      (body) => ({ body, signature: sign(body, now(), TEST_WEBHOOK_SECRET).slice(0, -1) }),
    ],
  ])("%s is refused and credits nothing", async (_name, forge) => {
    expect(await p.endpoint(forge(JSON.stringify(event)))).toBe(400);
    expect(await balance()).toBe(1_000n);
    // The real one still counts afterwards.
    expect(await p.endpoint(p.stripe.sign(event))).toBe(200);
    expect(await balance()).toBe(1_000n + BigInt(CENTS) * 100n);
  });
});

describe("a recorded webhook", () => {
  test("that is sent two hundred times, fifty at once, credits once", async () => {
    const recorded = p.stripe.sign(event);
    for (let round = 0; round < 4; round++) {
      const statuses = await Promise.all(Array.from({ length: 50 }, () => p.endpoint(recorded)));
      expect(new Set(statuses)).toEqual(new Set([200]));
    }
    expect(await balance()).toBe(1_000n + BigInt(CENTS) * 100n);
    const credits = await p.t.db.query(`SELECT FROM ledger_entries WHERE customer_id = $1 AND reference LIKE 'pi_%'`, [
      key.customer_id,
    ]);
    expect(credits.length).toBe(1);
    expect(await verifyLedger(p.t.db)).toEqual([]);
  });

  test("that comes again signed anew, as Stripe's own repetitions do, credits once", async () => {
    for (const age of [200, 100, 0]) {
      expect(await p.endpoint(p.stripe.sign(event, { timestamp: now() - age }))).toBe(200);
    }
    expect(await balance()).toBe(1_000n + BigInt(CENTS) * 100n);
  });

  test("of one gateway means nothing to another with its own secret", async () => {
    const other = await startPayingGateway({ config: { STRIPE_WEBHOOK_SECRET: ["whsec_another_gateway_0123"] } });
    try {
      expect(await other.endpoint(p.stripe.sign(event))).toBe(400);
    } finally {
      await other.stop();
    }
  });
});
