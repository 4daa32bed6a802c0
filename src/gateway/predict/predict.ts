/**
 * From validated inputs to a finished row (`predict`), or to a queued one (`submit`).
 *
 * 1. Only where somebody waits: the same payload, paid and finished, whose video got lost on the way to this customer:
 *    that one, at no charge. Whoever submits asynchronously fetches the result by id, so it cannot get lost.
 * 2. Inputs are written, then the acceptor debits and queues in one statement (submit.ts).
 * 3. Only where somebody waits: for the end. Whoever stops waiting first (client gone, deadline, server stopping)
 *    cancels, and the refund is committed before anything is answered. What was submitted asynchronously goes on.
 *
 * `predict` either returns a succeeded rollout or throws the ApiError that the caller gets.
 */
import { ApiError } from "#contract/errors.ts";
import type { RolloutId } from "#contract/ids.ts";
import { findUndelivered } from "#rollouts/find.ts";
import { isCalledOff } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { cancel, cancelPatiently } from "./cancel.ts";
import { errorOf } from "./failure.ts";
import { payloadOf, type PredictCall, submit, type SubmitParts } from "./submit.ts";
import type { FinishWaits } from "./wait.ts";

export interface Predictor {
  predict(call: PredictCall): Promise<Rollout>;
  /**
   * Paid and in the backlog; or, under an idempotency key that was used before, whatever became of that rollout. From
   * here on its caller may go away.
   */
  submit(call: PredictCall, expiresInS: number): Promise<Rollout>;
}

export interface PredictorParts extends SubmitParts {
  readonly waits: FinishWaits;
  /** This process in `gateway_leases`: when the lease ends, its callers have lost us. */
  readonly waiterId: string;
  readonly syncDeadlineMs: number;
}

/** How often a call may find itself under an idempotency key whose first caller just then went away. */
const ACCEPTS_MAX = 3;

export function createPredictor(parts: PredictorParts): Predictor {
  const { db, blobs, clock, waits, background, waiterId, stopping, syncDeadlineMs } = parts;
  /**
   * How many calls wait for a rollout or are being sent it right now. It has not got lost, so whoever sends the same
   * payload meanwhile wants a second one.
   */
  const inHand = new Map<RolloutId, number>();

  async function predict(call: PredictCall): Promise<Rollout> {
    const { gone } = call.answerEnd;
    const deadline = clock.now() + syncDeadlineMs;
    const payload = payloadOf(call);
    // With an idempotency key the key itself leads back to the rollout.
    if (call.idempotency_key === null) {
      // As of before the look: what is delivered during it is no lost one either.
      const beingSent = new Set(inHand.keys());
      const { fingerprint } = payload;
      const k = call.candidates.length;
      const undelivered = await findUndelivered(db, call.identity.customer_id, fingerprint, k, new Date(clock.now()));
      // Retention may have deleted it; then the same payload runs again.
      const stored = undelivered !== null && (await areVideosStored(undelivered));
      if (stored && !beingSent.has(undelivered.id) && !inHand.has(undelivered.id)) return held(call, undelivered);
    }
    if (gone.aborted) throw new ApiError("client_closed_request", "the caller went away before anything began");
    for (let accepts = 1; ; accepts++) {
      // A scored rollout is twice the work, which must not stand before what others wait for.
      const lane = call.scored ? "bulk" : "realtime";
      const terms = { lane, waiter_id: waiterId, deadline } as const;
      const { kind, rollout } = await submit(parts, call, payload, terms);
      const finished = await finish(call, held(call, rollout), deadline);
      // Called off because of its first caller, which set the key free; this one is still here and has time left. One that
      // was submitted asynchronously has no such caller: its owner cancelled it, or its time was over.
      const replayed = kind === "replayed" && rollout.waiter_id !== null;
      const anew = replayed && isCalledOff(finished.status) && clock.now() < deadline;
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
    if (accepted.waiter_id === null) {
      throw new ApiError(
        "deadline_exceeded",
        `not finished within ${Math.round(syncDeadlineMs / 1000)} s; it was submitted asynchronously and goes on: ` +
          `GET /v1/rollouts/${id}`,
      );
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

  return {
    predict,
    async submit(call, expiresInS) {
      const deadline = clock.now() + expiresInS * 1000;
      const { rollout } = await submit(parts, call, payloadOf(call), { lane: "bulk", waiter_id: null, deadline });
      return rollout;
    },
  };
}

function succeeded(rollout: Rollout): Rollout {
  if (rollout.status !== "succeeded") throw errorOf(rollout);
  return rollout;
}
