/** A gateway that takes cards: with the stand-in as its Stripe, and a customer who tops up. */
import { randomUUID } from "node:crypto";

import { adjustBalance } from "#billing/operator.ts";
import { reconcile } from "#billing/reconcile.ts";
import { createStripe, type Stripe } from "#billing/stripe.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { accountsOf } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import { type GatewayOverrides, startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import type { Database } from "#platform/database.ts";
import { silentLog } from "#test/support/postgres.ts";
import type { Endpoint } from "#test/support/stripe/deliveries.ts";
import {
  startStripeStandIn,
  type StripeStandIn,
  TEST_SECRET_KEY,
  TEST_WEBHOOK_SECRET,
} from "#test/support/stripe/stand-in.ts";

export interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown> & { readonly error?: { readonly code: string; readonly message: string } };
}

export interface PaymentRow {
  readonly problem: string | null;
  readonly credited_mils: bigint;
  readonly credited_by_event: string | null;
}

export interface PayingGateway {
  readonly t: TestGateway;
  readonly stripe: StripeStandIn;
  /** The client as the gateway has it. */
  readonly client: Stripe;
  /** The gateway's webhook. */
  readonly endpoint: Endpoint;
  topup(apiKey: string, body: unknown, headers?: Record<string, string>, base?: string): Promise<Answer>;
  /** A top-up that was asked for; gives the session's id. */
  session(apiKey: string, amountCents?: number): Promise<string>;
  accounts(customerId: string): Promise<{ balance_mils: Mils; debt_mils: Mils }>;
  payment(id: string): Promise<PaymentRow | undefined>;
  /** Leaves that much on the balance. */
  spendAllBut(customerId: string, left: bigint): Promise<void>;
  stop(): Promise<void>;
}

function stripeConfig(url: string) {
  return {
    STRIPE_SECRET_KEY: TEST_SECRET_KEY,
    STRIPE_WEBHOOK_SECRET: [TEST_WEBHOOK_SECRET],
    STRIPE_API_BASE: url,
  };
}

/** The client that a process makes of that configuration. */
export function stripeClient(url: string): Stripe {
  const client = createStripe(stripeConfig(url));
  if (!client) throw new Error("configured, and yet no client");
  return client;
}

export async function startPayingGateway(
  overrides: GatewayOverrides = {},
  wrapDb?: (db: Database) => Database,
): Promise<PayingGateway> {
  const stripe = await startStripeStandIn(overrides.clock ? { clock: overrides.clock } : {});
  const t = await startTestGateway(
    { ...overrides, config: { ...stripeConfig(stripe.url), ...overrides.config } },
    wrapDb,
  );
  const topup: PayingGateway["topup"] = async (apiKey, body, headers = {}, base = "") => {
    const answer = await t.app.inject({
      method: "POST",
      url: `${base}/v1/billing/topup`,
      headers: { authorization: `Bearer ${apiKey}`, "content-type": "application/json", ...headers },
      payload: JSON.stringify(body),
    });
    return { status: answer.statusCode, body: answer.json() };
  };
  return {
    t,
    stripe,
    client: stripeClient(stripe.url),
    topup,
    endpoint: webhookOf(t),
    async session(apiKey, amountCents = 2_500) {
      const { status, body } = await topup(apiKey, { amount_cents: amountCents });
      if (status !== 200) throw new Error(`top-up answered ${status}: ${JSON.stringify(body)}`);
      return String(body["session_id"]);
    },
    accounts: (customerId) => accountsOf(t.db, customerId),
    async payment(id) {
      const [row] = await t.db.query<PaymentRow>(
        `SELECT problem, credited_mils, credited_by_event FROM payments WHERE id = $1`,
        [id],
      );
      return row;
    },
    async spendAllBut(customer_id, left) {
      const { balance_mils } = await accountsOf(t.db, customer_id);
      const reference = `adjust_${customer_id}_${randomUUID()}`;
      const amount = mils(left - balance_mils);
      await adjustBalance(t.db, { customer_id, amount, operator: "test", reason: "spent", reference });
    },
    async stop() {
      await t.stop();
      await stripe.stop();
    },
  };
}

/** The webhook without a network in between. */
export const webhookOf =
  (t: TestGateway): Endpoint =>
  async ({ body, signature }) => {
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/billing/webhook",
      headers: { "content-type": "application/json; charset=utf-8", "stripe-signature": signature },
      payload: body,
    });
    return answer.statusCode;
  };

export const dollars = (usd: number): Mils => mils(Math.round(usd * 10_000));

export interface LookOptions {
  readonly dryRun?: boolean;
  readonly days?: number;
}

/** One reconciliation as the scheduler runs it, by default over 30 days. */
export const lookAtStripe = ({ t, client }: PayingGateway, options: LookOptions = {}) =>
  reconcile({ db: t.as("scheduler"), stripe: client, clock: systemClock, log: silentLog }, { days: 30, ...options });

/** Stripe forgets its events after 30 days; the objects stay. */
export function forgetEvents({ stripe }: PayingGateway): void {
  stripe.drop();
  stripe.books.events.length = 0;
}
