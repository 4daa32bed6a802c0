/**
 * Paying for a rollout and putting it into the backlog: its inputs are written first, then one statement debits and
 * queues. A refusal leaves nothing behind.
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import { newRolloutId, type RandomBytes, type RequestId, type RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { Lane, RolloutRoute, SamplingParams } from "#contract/rollout.ts";
import { fingerprintOf } from "#inputs/fingerprint.ts";
import type { Frame } from "#inputs/frame.ts";
import { type Actions, actionsBytes } from "#inputs/npy.ts";
import type { Mode } from "#inputs/params.ts";
import type { KeyIdentity } from "#keys/keys.ts";
import { isUndone } from "#platform/database.ts";
import { type Accepted, isKeyUsed } from "#rollouts/accept.ts";
import type { Acceptor } from "#rollouts/acceptor.ts";

import type { BacklogGuard } from "../backlog-guard.ts";
import type { Background } from "../background.ts";
import type { Model } from "../models.ts";
import type { AnswerEnd } from "../plugins/answer-end.ts";
import { cancelPatiently, type CancelParts } from "./cancel.ts";

export interface PredictCall {
  readonly identity: KeyIdentity;
  readonly request_id: RequestId;
  readonly route: Exclude<RolloutRoute, "dataset">;
  readonly mode: Mode;
  readonly webhook_url: string | null;
  readonly model: Model;
  readonly frame: Frame;
  /** One per candidate, all of the same length. */
  readonly candidates: readonly [Actions, ...Actions[]];
  readonly params: SamplingParams;
  readonly scored: boolean;
  readonly idempotency_key: string | null;
  readonly answerEnd: AnswerEnd;
}

export interface Payload {
  readonly actions: Buffer;
  readonly fingerprint: Buffer;
}

export function payloadOf({ model, frame, candidates, params, scored }: PredictCall): Payload {
  const actions = actionsBytes(candidates);
  const k = candidates.length;
  const fingerprint = fingerprintOf({ bundle: model.identity, pixels: frame.pixels, actions, k, params, scored });
  return { actions, fingerprint };
}

export interface SubmitParts extends CancelParts {
  readonly acceptor: Acceptor;
  readonly backlog: BacklogGuard;
  readonly blobs: BlobStore;
  readonly random: RandomBytes;
  readonly background: Background;
}

export interface Terms {
  readonly lane: Lane;
  /** Whose client waits; null for asynchronous work. */
  readonly waiter_id: string | null;
  /** Epoch ms. */
  readonly deadline: number;
}

/**
 * Throws as BacklogGuard.enter does, but not for a repetition under its key, which adds nothing to the backlog; and as
 * Acceptor.accept does: the caller who went away before its statement began is not charged.
 */
export async function submit(
  parts: SubmitParts,
  call: PredictCall,
  { actions, fingerprint }: Payload,
  { lane, waiter_id, deadline }: Terms,
): Promise<Accepted> {
  const { acceptor, background, money, queues } = parts;
  await enterBacklog(parts, call, lane);
  const id = newRolloutId(parts.random);
  const paid = { id, customer_id: call.identity.customer_id };
  await putInputs(parts, id, call.frame.png, actions);
  try {
    const accepted = await acceptor.accept(
      {
        ...paid,
        key_id: call.identity.key_id,
        request_id: call.request_id,
        route: call.route,
        model: call.model.slug,
        lane,
        k: call.candidates.length,
        actions_per_candidate: call.candidates[0].count,
        params: call.params,
        fingerprint,
        idempotency_key: call.idempotency_key,
        waiter_id,
        deadline_at: new Date(deadline),
        webhook_url: call.webhook_url,
        dataset: null,
        scored: call.scored,
      },
      call.answerEnd.gone,
    );
    if (accepted.kind === "replayed") deleteInputs(parts, id);
    else {
      money.moved("debit", accepted.rollout.charge_mils);
      await queues.signals.publish({ kind: "queued" });
    }
    return accepted;
  } catch (error) {
    if (error instanceof ApiError || isUndone(error)) {
      deleteInputs(parts, id);
      throw error;
    }
    // The connection may have broken after the commit. Then a rollout is paid whose caller hears of an error.
    if (waiter_id === null && call.idempotency_key !== null) throw mayHaveBeenAccepted(error);
    background.run("cancel a rollout whose acceptance is unknown", () => cancelPatiently(parts, paid, deadline));
    throw error;
  }
}

async function enterBacklog({ db, backlog }: SubmitParts, call: PredictCall, lane: Lane): Promise<void> {
  const { customer_id } = call.identity;
  try {
    await backlog.enter({ model: call.model.slug, lane, customer_id });
  } catch (error) {
    const { idempotency_key: key } = call;
    if (error instanceof ApiError && key !== null && (await isKeyUsed(db, customer_id, key))) return;
    throw error;
  }
}

async function putInputs(parts: SubmitParts, id: RolloutId, png: Buffer, actions: Buffer): Promise<void> {
  const { blobs } = parts;
  try {
    await Promise.all([blobs.put(blobKeys.frame(id), png), blobs.put(blobKeys.actions(id), actions)]);
  } catch (error) {
    deleteInputs(parts, id);
    throw error;
  }
}

function deleteInputs({ background, blobs }: SubmitParts, id: RolloutId): void {
  background.run("delete the inputs of a refused rollout (the sweep will)", () =>
    Promise.all([blobs.delete(blobKeys.frame(id)), blobs.delete(blobKeys.actions(id))]),
  );
}

/**
 * An asynchronous rollout under an idempotency key lives on: a repetition that finds it is told of it as accepted, and must
 * not have it cancelled afterwards. Without a key nobody could find it, and whoever submits again would pay twice.
 */
function mayHaveBeenAccepted(cause: unknown): ApiError {
  return new ApiError(
    "ledger_unavailable",
    "the database broke off while this rollout was being accepted: it may run; repeat the request with the same " +
      "Idempotency-Key to be told, it is charged once",
    { headers: { "Retry-After": "2" }, cause },
  );
}
