/**
 * A synchronous rollout from validated inputs to a finished row.
 *
 * 1. The same payload, paid and finished, whose video got lost on the way to this customer: that one, at no charge.
 * 2. Inputs are written, then the acceptor debits and queues in one statement; a refusal leaves nothing behind.
 * 3. Wait for the end. Whoever stops waiting first (client gone, deadline, server stopping) cancels, and the refund
 *    is committed before anything is answered.
 *
 * Every function either returns a succeeded rollout or throws the ApiError that the caller gets.
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import { newRolloutId, type RandomBytes, type RequestId, type RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { RolloutRoute, SamplingParams } from "#contract/rollout.ts";
import type { KeyIdentity } from "#keys/keys.ts";
import { isUndone } from "#platform/database.ts";
import type { Accepted } from "#rollouts/accept.ts";
import type { Acceptor } from "#rollouts/acceptor.ts";
import { findUndelivered } from "#rollouts/find.ts";
import { isCalledOff } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { createTurns } from "#rollouts/turns.ts";

import type { Background } from "../background.ts";
import { fingerprintOf } from "#inputs/fingerprint.ts";
import type { Frame } from "#inputs/frame.ts";
import { type Actions, actionsBytes } from "#inputs/npy.ts";
import type { Model } from "../models.ts";
import type { AnswerEnd } from "../plugins/answer-end.ts";
import { cancel, cancelPatiently, type CancelParts } from "./cancel.ts";
import { errorOf } from "./failure.ts";
import type { FinishWaits } from "./wait.ts";

export interface PredictCall {
  readonly identity: KeyIdentity;
  readonly request_id: RequestId;
  readonly route: Exclude<RolloutRoute, "dataset">;
  readonly model: Model;
  readonly frame: Frame;
  /** One per candidate, all of the same length. */
  readonly candidates: readonly [Actions, ...Actions[]];
  readonly params: SamplingParams;
  readonly idempotency_key: string | null;
  readonly answerEnd: AnswerEnd;
}

export interface Predictor {
  predict(call: PredictCall): Promise<Rollout>;
}

export interface PredictorParts extends Omit<CancelParts, "turns"> {
  readonly acceptor: Acceptor;
  readonly blobs: BlobStore;
  readonly random: RandomBytes;
  readonly waits: FinishWaits;
  readonly background: Background;
  /** This process in `gateway_leases`: when the lease ends, its callers have lost us. */
  readonly waiterId: string;
  readonly syncDeadlineMs: number;
}

/** How often a call may find itself under an idempotency key whose first caller just then went away. */
const ACCEPTS_MAX = 3;

export function createPredictor(predictorParts: PredictorParts): Predictor {
  const parts = { ...predictorParts, turns: createTurns() };
  const { db, acceptor, queues, blobs, clock, random, money, waits, background, waiterId, stopping, syncDeadlineMs } =
    parts;
  /**
   * How many calls wait for a rollout or are being sent it right now. It has not got lost, so whoever sends the same
   * payload meanwhile wants a second one.
   */
  const inHand = new Map<RolloutId, number>();

  async function predict(call: PredictCall): Promise<Rollout> {
    const { gone } = call.answerEnd;
    const deadline = clock.now() + syncDeadlineMs;
    const actions = actionsBytes(call.candidates);
    const k = call.candidates.length;
    const fingerprint = fingerprintOf({
      bundle: call.model.identity,
      pixels: call.frame.pixels,
      actions,
      k,
      params: call.params,
    });
    // With an idempotency key the key itself leads back to the rollout.
    if (call.idempotency_key === null) {
      // As of before the look: what is delivered during it is no lost one either.
      const beingSent = new Set(inHand.keys());
      const undelivered = await findUndelivered(db, call.identity.customer_id, fingerprint, k, new Date(clock.now()));
      // Retention may have deleted it; then the same payload runs again.
      const stored = undelivered !== null && (await areVideosStored(undelivered));
      if (stored && !beingSent.has(undelivered.id) && !inHand.has(undelivered.id)) return held(call, undelivered);
    }
    if (gone.aborted) throw new ApiError("client_closed_request", "the caller went away before anything began");
    for (let accepts = 1; ; accepts++) {
      const { kind, rollout } = await accept(call, actions, fingerprint, deadline);
      const finished = await finish(call, held(call, rollout), deadline);
      // Called off because of its first caller, which set the key free; this one is still here and has time left.
      const anew = kind === "replayed" && isCalledOff(finished.status) && clock.now() < deadline;
      if (!anew || gone.aborted || stopping.aborted || accepts === ACCEPTS_MAX) return succeeded(finished);
    }
  }

  async function areVideosStored({ result }: Rollout): Promise<boolean> {
    const videos = await Promise.all((result?.video_keys ?? []).map((key) => blobs.info(key)));
    return videos.every((video) => video !== null);
  }

  function held(call: PredictCall, rollout: Rollout): Rollout {
    const { id } = rollout;
    inHand.set(id, (inHand.get(id) ?? 0) + 1);
    void call.answerEnd.whole.then(() => {
      const others = (inHand.get(id) ?? 0) - 1;
      if (others > 0) inHand.set(id, others);
      else inHand.delete(id);
    });
    return rollout;
  }

  async function accept(call: PredictCall, actions: Buffer, fingerprint: Buffer, deadline: number): Promise<Accepted> {
    const id = newRolloutId(random);
    const deleteInputs = (): void =>
      background.run("delete the inputs of a refused rollout (the sweep will)", () =>
        Promise.all([blobs.delete(blobKeys.frame(id)), blobs.delete(blobKeys.actions(id))]),
      );
    const paid = { id, customer_id: call.identity.customer_id };
    try {
      await Promise.all([blobs.put(blobKeys.frame(id), call.frame.png), blobs.put(blobKeys.actions(id), actions)]);
    } catch (error) {
      deleteInputs();
      throw error;
    }
    try {
      const accepted = await acceptor.accept(
        {
          ...paid,
          key_id: call.identity.key_id,
          request_id: call.request_id,
          route: call.route,
          model: call.model.slug,
          lane: "realtime",
          k: call.candidates.length,
          actions_per_candidate: call.candidates[0].count,
          params: call.params,
          fingerprint,
          idempotency_key: call.idempotency_key,
          waiter_id: waiterId,
          deadline_at: new Date(deadline),
          webhook_url: null,
          dataset: null,
        },
        call.answerEnd.gone,
      );
      if (accepted.kind === "replayed") deleteInputs();
      else {
        money.moved("debit", accepted.rollout.charge_mils);
        await queues.signals.publish({ kind: "queued" });
      }
      return accepted;
    } catch (error) {
      if (error instanceof ApiError || isUndone(error)) deleteInputs();
      // The connection may have broken after the commit: then a rollout is paid that nobody waits for.
      else background.run("cancel a rollout whose acceptance is unknown", () => cancelPatiently(parts, paid, deadline));
      throw error;
    }
  }

  /** Its end, whatever that is; throws when this call stopped waiting first. */
  async function finish(call: PredictCall, accepted: Rollout, deadline: number): Promise<Rollout> {
    const { id } = accepted;
    const { gone } = call.answerEnd;
    const giveUp = AbortSignal.any([gone, stopping]);
    const finished = await waits.untilFinished(id, call.identity.customer_id, deadline, giveUp);
    if (finished) return finished;

    // Others may wait for the same rollout under the same idempotency key: here, or where it was accepted.
    const acceptedElsewhere = accepted.waiter_id !== waiterId;
    if (gone.aborted && (acceptedElsewhere || waits.waiting(id) > 0)) {
      throw new ApiError("client_closed_request", "the caller went away; others still wait for this rollout");
    }
    if (stopping.aborted && acceptedElsewhere) {
      throw new ApiError("shutting_down", "the server is stopping; your rollout goes on: repeat with the same key");
    }
    const outcome = await cancel(parts, accepted).catch((error: unknown) => {
      background.run("cancel a rollout that nobody waits for", () =>
        cancelPatiently(parts, accepted, accepted.deadline_at.getTime()),
      );
      throw error;
    });
    // It finished in the last moment: whoever is still there gets it.
    if (outcome && outcome.status !== "cancelled") return outcome;
    if (gone.aborted) throw new ApiError("client_closed_request", "the caller went away; cancelled and refunded");
    if (stopping.aborted) throw new ApiError("shutting_down", "the server is stopping; you were refunded, try again");
    throw new ApiError(
      "deadline_exceeded",
      `not finished within ${Math.round(syncDeadlineMs / 1000)} s; cancelled and refunded in full`,
    );
  }

  return { predict };
}

function succeeded(rollout: Rollout): Rollout {
  if (rollout.status !== "succeeded") throw errorOf(rollout);
  return rollout;
}
