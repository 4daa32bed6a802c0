/** What must hold before the form of a paid route is read: its type, its size, and a balance that can pay for something. */
import type { onRequestAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { mils } from "#contract/mils.ts";
import { accountsOf } from "#ledger/ledger.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { insufficientCredits } from "#rollouts/accept.ts";
import { hasUndelivered } from "#rollouts/find.ts";

import { bodyTooLarge } from "../input/multipart.ts";
import type { Models } from "../models.ts";
import { identityOf } from "./keys.ts";

export const checkFormHeaders: onRequestAsyncHookHandler = async (request) => {
  const contentType = request.headers["content-type"] ?? "none";
  if (!/^multipart\/form-data\s*;/i.test(contentType)) {
    throw new ApiError(
      "unsupported_media_type",
      `expected Content-Type multipart/form-data with a boundary, got ${contentType.slice(0, 100)}`,
    );
  }
  if (Number(request.headers["content-length"] ?? 0) > BODY_BYTES_MAX) throw bodyTooLarge();
};

/** A hook that answers 402 at once where not even the shortest rollout could be paid. */
export function createBalanceCheck(db: Database, clock: Clock, models: Models): onRequestAsyncHookHandler {
  const framesMin = Math.min(...models.all.map(({ manifest }) => manifest.shapes.chunk_size)) + 1;
  return async (request) => {
    const { balance_mils, price_mils_per_frame, customer_id } = identityOf(request);
    const smallest = mils(framesMin * price_mils_per_frame);
    if (balance_mils >= smallest) return;
    // Two kinds of request cost nothing: a repetition under its key, and a paid video that did not arrive.
    if (request.headers["idempotency-key"] !== undefined) return;
    if (await hasUndelivered(db, customer_id, new Date(clock.now()))) return;
    // The body, and with it what this request would cost, has not been read.
    const { debt_mils } = await accountsOf(db, customer_id);
    throw insufficientCredits(balance_mils, smallest, "even the shortest rollout", debt_mils);
  };
}
