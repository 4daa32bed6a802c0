/** A month's statement of the customer whose key it is, streamed: JSON or CSV, with the hash chain. */
import { Readable } from "node:stream";

import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { statementEntries, statementRanges } from "#ledger/statement.ts";
import { statementCsv, statementJson } from "#ledger/statement-text.ts";

import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

/**
 * An entry carries the time its transaction began, so one of the old month may be committed in the new one. No
 * transaction of ours lives as long as this.
 */
const LATE_ENTRIES_MS = 5 * 60_000;
/** Written to the connection at once. */
const CHUNK_CHARS = 64 * 1024;

const ChainState = Type.Object({
  seq: Type.Integer({ description: "Number of the latest entry; 0 before the first." }),
  balance_mils: Type.Integer(),
  head_hash: Type.String({ description: "Of the latest entry, hexadecimal; empty before the first." }),
});

const StatementEntry = Type.Object({
  seq: Type.Integer(),
  kind: Type.Union(["debit", "credit", "refund", "adjustment", "clawback"].map((kind) => Type.Literal(kind))),
  rollout_id: Type.Union([Type.String(), Type.Null()]),
  reference: Type.String(),
  detail: Type.String(),
  created_at: Type.String({ description: "UTC with microseconds." }),
  amount_mils: Type.Integer({ description: "Signed." }),
  balance_after_mils: Type.Integer(),
  prev_hash: Type.String(),
  hash: Type.String(),
});

const Statement = Type.Object({
  object: Type.Literal("statement"),
  customer_id: Type.String(),
  month: Type.String({ examples: ["2026-11"] }),
  complete: Type.Boolean({ description: "False while entries of this month may still come." }),
  accounts: Type.Array(
    Type.Object({
      account: Type.Union([Type.Literal("balance"), Type.Literal("debt")]),
      opening: ChainState,
      entries: Type.Array(StatementEntry),
      closing: ChainState,
    }),
  ),
});

const Query = Type.Object({
  month: Type.String({ description: "In UTC, from 2000-01 on.", examples: ["2026-11"] }),
  format: Type.Optional(Type.Union([Type.Literal("json"), Type.Literal("csv")])),
});

export function addStatementRoute(app: FastifyInstance, { db, clock, keyed }: RouteParts): void {
  // Typed by its query alone: the answer is a stream of what `Statement` describes.
  app.get<{ Querystring: Static<typeof Query> }>(
    "/v1/billing/statement",
    {
      onRequest: [...keyed],
      schema: {
        summary: "A month's statement with its hash chain",
        description: "JSON, or CSV by `format=csv` or `Accept: text/csv`. How to verify it: docs/money.md.",
        tags: ["billing"],
        querystring: Query,
        response: {
          200: {
            description: "The statement, oldest entry first",
            content: { "application/json": { schema: Statement }, "text/csv": { schema: Type.String() } },
          },
        },
      },
    },
    async (request, reply) => {
      const { customer_id } = identityOf(request);
      const { month } = request.query;
      const { from, to } = monthOf(month, clock.now());
      const format = request.query.format ?? (prefersCsv(request.headers.accept) ? "csv" : "json");

      const ranges = await statementRanges(db, customer_id, from, to);
      const parts = ranges.map((range) => ({ range, entries: statementEntries(db, customer_id, range) }));
      const head = { customer_id, month, complete: clock.now() >= to.getTime() + LATE_ENTRIES_MS };
      const pieces = format === "csv" ? statementCsv(head, parts) : statementJson(head, parts);
      return reply
        .header("Content-Disposition", `attachment; filename="statement-${customer_id}-${month}.${format}"`)
        .header("Vary", "Accept")
        .type(format === "csv" ? "text/csv; charset=utf-8; header=present" : "application/json; charset=utf-8")
        .send(Readable.from(inChunks(pieces), { objectMode: false }));
    },
  );
}

/** Throws ApiError(invalid_input) for what is no month, and for one that has not begun. */
function monthOf(month: string, nowMs: number): { from: Date; to: Date } {
  const present = new Date(nowMs).toISOString().slice(0, 7);
  if (!/^[2-9]\d{3}-(0[1-9]|1[0-2])$/.test(month)) {
    throw new ApiError(
      "invalid_input",
      `month: expected one such as 2026-11, from 2000-01 to ${present}; got ${JSON.stringify(month.slice(0, 40))}`,
    );
  }
  const from = new Date(`${month}-01T00:00:00Z`);
  if (from.getTime() > nowMs) {
    throw new ApiError("invalid_input", `month: ${month} has not begun (UTC); the present one is ${present}`);
  }
  return { from, to: new Date(Date.UTC(from.getUTCFullYear(), from.getUTCMonth() + 1, 1)) };
}

/** Whether an Accept header names CSV with a higher weight than JSON (RFC 9110, 12.5.1). */
function prefersCsv(accept: string | undefined): boolean {
  const weights = new Map<string, number>();
  for (const range of (accept ?? "").toLowerCase().split(",")) {
    const [type = "", ...parameters] = range.split(";").map((part) => part.trim());
    const q = parameters.find((parameter) => parameter.startsWith("q="));
    weights.set(type, q === undefined ? 1 : Number(q.slice(2)) || 0);
  }
  return (weights.get("text/csv") ?? 0) > (weights.get("application/json") ?? 0);
}

async function* inChunks(pieces: AsyncIterable<string>): AsyncGenerator<string> {
  let chunk = "";
  for await (const piece of pieces) {
    chunk += piece;
    if (chunk.length < CHUNK_CHARS) continue;
    yield chunk;
    chunk = "";
  }
  if (chunk !== "") yield chunk;
}
