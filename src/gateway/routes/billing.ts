/** Balance and transactions of the customer whose key it is. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { TRANSACTIONS_PAGE_MAX } from "#contract/limits.ts";
import { centsHalfUp, usdNumber } from "#contract/mils.ts";
import { accountsOf, type LedgerEntry, transactionsOf } from "#ledger/ledger.ts";

import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

const TRANSACTIONS_PAGE_DEFAULT = 50;

const Balance = Type.Object({
  customer_id: Type.String(),
  balance_mils: Type.Integer({ description: "Exact: 1 mil = $0.0001." }),
  balance_cents: Type.Integer({ description: "Rounded half up, for display." }),
  balance_usd: Type.Number(),
  debt_mils: Type.Integer({ description: "What was taken back beyond the balance; above zero, the balance is zero." }),
});

const Transaction = Type.Object({
  id: Type.String({ description: "The request id of a predict or refund, Stripe's event id of a top-up." }),
  ts: Type.Number({ description: "Epoch seconds." }),
  kind: Type.Union([Type.Literal("debit"), Type.Literal("credit"), Type.Literal("refund")]),
  amount_mils: Type.Integer({ description: "Signed: debits are negative." }),
  amount_cents: Type.Integer(),
  amount_usd: Type.Number(),
  balance_after_mils: Type.Integer(),
  balance_after_cents: Type.Integer(),
  balance_after_usd: Type.Number(),
  detail: Type.String({ examples: ["predict · pusht-small · 49 frames"] }),
  ledger_kind: Type.String({ description: "As in the statement: `kind`, or adjustment, or clawback." }),
  reference: Type.String({ description: "As in the statement: a request's id, or a payment's." }),
  rollout_id: Type.Union([Type.String(), Type.Null()]),
  seq: Type.Integer({ description: "Counts your entries from 1, without gaps." }),
  hash: Type.String({ description: "As in the statement." }),
});

function transactionOf(entry: LedgerEntry) {
  const { kind, amount_mils, balance_after_mils, reference, detail, created_at, rollout_id } = entry;
  return {
    id: entry.stripe_event_id ?? reference,
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
    ledger_kind: kind,
    reference,
    rollout_id,
    seq: Number(entry.seq),
    hash: entry.hash.toString("hex"),
  } as const;
}

const cursorOf = (seq: bigint): string => Buffer.from(`seq:${seq}`).toString("base64url");

/** Throws ApiError(invalid_input). */
function seqOf(cursor: string): bigint {
  const [, seq] = /^seq:([1-9]\d{0,17})$/.exec(Buffer.from(cursor, "base64url").toString("latin1")) ?? [];
  if (seq === undefined || cursorOf(BigInt(seq)) !== cursor) {
    const got = JSON.stringify(cursor.slice(0, 60));
    throw new ApiError("invalid_input", `after: expected the next_cursor of an earlier answer, got ${got}`);
  }
  return BigInt(seq);
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
      const { balance_mils, debt_mils } = await accountsOf(db, customer_id);
      return {
        customer_id,
        balance_mils: Number(balance_mils),
        balance_cents: centsHalfUp(balance_mils),
        balance_usd: usdNumber(balance_mils),
        debt_mils: Number(debt_mils),
      };
    },
  );

  app.get(
    "/v1/billing/transactions",
    {
      onRequest: [...keyed],
      schema: {
        summary: "Your transactions, newest first",
        tags: ["billing"],
        querystring: Type.Object({
          limit: Type.Integer({
            default: TRANSACTIONS_PAGE_DEFAULT,
            description: `1 to ${TRANSACTIONS_PAGE_MAX}; numbers beyond are clamped.`,
          }),
          after: Type.Optional(
            Type.String({ description: "`next_cursor` of an earlier answer: what comes after it." }),
          ),
        }),
        response: {
          200: Type.Object({
            transactions: Type.Array(Transaction),
            next_cursor: Type.Union([Type.String(), Type.Null()], { description: "Null at the oldest." }),
          }),
        },
      },
    },
    async (request) => {
      const limit = Math.min(Math.max(request.query.limit, 1), TRANSACTIONS_PAGE_MAX);
      const before = request.query.after === undefined ? null : seqOf(request.query.after);
      const entries = await transactionsOf(db, identityOf(request).customer_id, limit, before);
      const oldest = entries.at(-1)?.seq ?? 1n;
      return {
        transactions: entries.map(transactionOf),
        // Sequence numbers have no gaps, so whether there is more needs no further look.
        next_cursor: oldest > 1n ? cursorOf(oldest) : null,
      };
    },
  );
}
