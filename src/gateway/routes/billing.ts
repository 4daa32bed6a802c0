/** Balance and statement of the customer whose key it is. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { TRANSACTIONS_PAGE_MAX } from "#contract/limits.ts";
import { centsHalfUp, usdNumber } from "#contract/mils.ts";
import { balanceOf, type LedgerEntry, transactionsOf } from "#ledger/ledger.ts";

import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

const TRANSACTIONS_PAGE_DEFAULT = 50;

const Balance = Type.Object({
  customer_id: Type.String(),
  balance_mils: Type.Integer({ description: "Exact: 1 mil = $0.0001." }),
  balance_cents: Type.Integer({ description: "Rounded half up, for display." }),
  balance_usd: Type.Number(),
});

const Transaction = Type.Object({
  id: Type.String({ description: "The request id of a predict or refund, the payment's id of a credit." }),
  ts: Type.Number({ description: "Epoch seconds." }),
  kind: Type.Union([Type.Literal("debit"), Type.Literal("credit"), Type.Literal("refund")]),
  amount_mils: Type.Integer({ description: "Signed: debits are negative." }),
  amount_cents: Type.Integer(),
  amount_usd: Type.Number(),
  balance_after_mils: Type.Integer(),
  balance_after_cents: Type.Integer(),
  balance_after_usd: Type.Number(),
  detail: Type.String({ examples: ["predict · pusht-small · 49 frames"] }),
});

function transactionOf({ kind, amount_mils, balance_after_mils, reference, detail, created_at }: LedgerEntry) {
  return {
    id: reference,
    ts: created_at.getTime() / 1000,
    // The wire knows three kinds; what else the ledger has shows by its direction.
    kind: kind === "adjustment" || kind === "clawback" ? (amount_mils < 0n ? "debit" : "credit") : kind,
    amount_mils: Number(amount_mils),
    amount_cents: centsHalfUp(amount_mils),
    amount_usd: usdNumber(amount_mils),
    balance_after_mils: Number(balance_after_mils),
    balance_after_cents: centsHalfUp(balance_after_mils),
    balance_after_usd: usdNumber(balance_after_mils),
    detail,
  } as const;
}

export function addBillingRoutes(bare: FastifyInstance, { db, keyed }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/billing/balance",
    {
      onRequest: [...keyed],
      schema: { summary: "Your prepaid balance", tags: ["billing"], response: { 200: Balance } },
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      const balance = await balanceOf(db, customer_id);
      return {
        customer_id,
        balance_mils: Number(balance),
        balance_cents: centsHalfUp(balance),
        balance_usd: usdNumber(balance),
      };
    },
  );

  app.get(
    "/v1/billing/transactions",
    {
      onRequest: [...keyed],
      schema: {
        summary: "Your statement, newest first",
        tags: ["billing"],
        querystring: Type.Object({
          limit: Type.Integer({
            default: TRANSACTIONS_PAGE_DEFAULT,
            description: `1 to ${TRANSACTIONS_PAGE_MAX}; numbers beyond are clamped.`,
          }),
        }),
        response: { 200: Type.Object({ transactions: Type.Array(Transaction) }) },
      },
    },
    async (request) => {
      const limit = Math.min(Math.max(request.query.limit, 1), TRANSACTIONS_PAGE_MAX);
      const entries = await transactionsOf(db, identityOf(request).customer_id, limit);
      return { transactions: entries.map(transactionOf) };
    },
  );

  app.post(
    "/v1/billing/topup",
    {
      onRequest: [...keyed],
      schema: { summary: "Top up by card", tags: ["billing"], body: Type.Unknown() },
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      throw new ApiError(
        "topup_not_configured",
        "top-up by card is not configured on this server; its operator adds credits with: " +
          `dream-engine credits grant ${customer_id} <usd>`,
      );
    },
  );
}
