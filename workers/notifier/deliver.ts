/** One attempt at one delivery: who signs, what it says, what came back, what follows from it. */
import type { RandomBytes } from "#contract/ids.ts";
import { WEBHOOK_TEST } from "#contract/webhooks.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { type Outbound, OutboundError } from "#platform/outbound.ts";
import { EXCERPT_BYTES_MAX, excerptOf, isGone, nextAfter } from "#webhooks/answer.ts";
import { customerSigning } from "#webhooks/customer-signing.ts";
import { type Attempt, type Claimed, type Next, noteAttempt } from "#webhooks/deliveries.ts";
import { disableGone, endpointToSend } from "#webhooks/endpoints.ts";
import { messageOf, type MessageParts } from "#webhooks/message.ts";
import { type Generation, signatureHeaders, type Signer } from "#webhooks/secrets.ts";

import type { NotifierMetrics } from "./metrics.ts";

export interface DeliverParts extends Omit<MessageParts, "db"> {
  readonly db: Database;
  readonly outbound: Outbound;
  /** What the secrets of all receivers follow from. */
  readonly root: Buffer;
  /** Of one exchange. */
  readonly timeoutMs: number;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly metrics: NotifierMetrics;
  readonly log: Log;
}

/** Before it is tried again where the fault is ours. */
const OUR_FAULT_DELAY_MS = 60_000;

interface Target {
  readonly url: string;
  readonly signer: Signer;
  readonly generation: Generation;
}

/** Sends it and notes the outcome. When `stopping` is aborted, the exchange is broken off and the delivery goes to others. */
export async function deliver(claimed: Claimed, parts: DeliverParts, stopping: AbortSignal): Promise<void> {
  const { db, clock, log } = parts;
  const target = await targetOf(claimed, db);
  if (typeof target === "string") {
    await note(claimed, null, { state: "failed", reason: target }, parts);
    return;
  }
  const body = await messageOf(claimed, parts, clock.now()).catch((error: unknown) => {
    log.error({ err: error, delivery_id: claimed.id }, "could not write a webhook; it is tried again");
  });
  if (body === undefined) {
    await note(claimed, null, { state: "pending", delayMs: OUR_FAULT_DELAY_MS, counts: false }, parts);
    return;
  }
  const { attempt, next } = await send(claimed, target, body, parts, stopping);
  await note(claimed, attempt, next, parts, target);
}

/** Where to and with whose secret; text is why nowhere. */
async function targetOf({ endpoint_id, customer_id, url }: Claimed, db: Database): Promise<Target | string> {
  if (endpoint_id === null) {
    return { url, signer: { kind: "customer", id: customer_id }, generation: await customerSigning(db, customer_id) };
  }
  const endpoint = await endpointToSend(db, endpoint_id);
  if (typeof endpoint === "string") return endpoint;
  return { url: endpoint.url, signer: { kind: "endpoint", id: endpoint_id }, generation: endpoint };
}

async function send(
  { id, event, counted: failed }: Claimed,
  { url, signer, generation }: Target,
  body: Buffer,
  { outbound, root, timeoutMs, clock, random, log }: DeliverParts,
  stopping: AbortSignal,
): Promise<{ readonly attempt: Attempt; readonly next: Next }> {
  const startedMs = clock.now();
  const ended = (answer: Attempt["answer"]): Attempt => ({
    at: new Date(startedMs),
    duration_ms: Math.max(clock.now() - startedMs, 0),
    answer,
  });
  try {
    const reply = await outbound.request(url, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "user-agent": "dream-engine-webhooks",
        ...signatureHeaders(root, signer, generation, { id, nowMs: startedMs, body }),
      },
      body,
      timeoutMs,
      bodyBytesMax: EXCERPT_BYTES_MAX,
      signal: stopping,
    });
    const answer = { status: reply.status, retryAfter: reply.headers["retry-after"] };
    return {
      attempt: ended({ status: reply.status, excerpt: excerptOf(reply.body) }),
      next: nextAfter(answer, { event, failed }, random, clock.now()),
    };
  } catch (error) {
    if (stopping.aborted) {
      const next: Next = { state: "pending", delayMs: 0, counts: false };
      return { attempt: ended({ status: null, error: "broken off by us, and sent again" }), next };
    }
    if (!(error instanceof OutboundError)) throw error;
    log.debug({ err: error, delivery_id: id }, "a webhook's receiver gave no answer");
    const next = nextAfter(null, { event, failed }, random, clock.now());
    return { attempt: ended({ status: null, error: error.message }), next };
  }
}

/** All of it or nothing: who says 410 is told nothing more, whatever waits for it; but a test changes nothing. */
async function note(
  claimed: Claimed,
  attempt: Attempt | null,
  next: Next,
  { db, metrics, log }: DeliverParts,
  target?: Target,
): Promise<void> {
  const status = attempt?.answer.status ?? null;
  const noted = await db.transaction(async (tx) => {
    const isGoneForGood =
      claimed.event !== WEBHOOK_TEST && status !== null && isGone({ status, retryAfter: undefined });
    if (target?.signer.kind === "endpoint" && isGoneForGood) {
      await disableGone(tx, target.signer.id, target.url);
    }
    return await noteAttempt(tx, claimed, attempt, next);
  });
  if (attempt !== null) metrics.attempts.inc({ answer: status === null ? "none" : `${Math.floor(status / 100)}xx` });
  if (noted && next.state !== "pending") metrics.deliveries.inc({ outcome: next.state });
  // Not the whole URL: customers put tokens into theirs.
  const { id, receiver, event, attempt: n } = claimed;
  log.info({ delivery_id: id, receiver, event, attempt: n, status, state: next.state, noted }, "webhook");
}
