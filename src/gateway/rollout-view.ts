/** A rollout as the routes show it: what is stored, and what the queue and the workers say of it just now. */
import type { FastifyRequest } from "fastify";

import { jobIdOf } from "#contract/ids.ts";
import { type EnvelopeContext, envelopeOf, type RolloutEnvelope } from "#rollouts/envelope.ts";
import { expectedStartS, type PoolOutlook } from "#rollouts/expected-start.ts";
import { queuePosition } from "#rollouts/find.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import { retryAfterS } from "#rollouts/pace.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { within } from "#platform/bounded.ts";

import type { ProgressBoard } from "./progress-board.ts";
import type { RouteParts } from "./route-parts.ts";

export interface RolloutView {
  readonly envelope: RolloutEnvelope;
  /** When it is worth to look again; null once it has ended. */
  readonly retryAfterS: number | null;
}

export interface RolloutViews {
  of(rollout: Rollout, request: FastifyRequest): Promise<RolloutView>;
  /** Of a page: without places in the queue, each of which would have to be counted. */
  ofPage(rollouts: readonly Rollout[], request: FastifyRequest): Promise<RolloutEnvelope[]>;
}

/** What a queue that is away may hold up an answer for. */
const LOOK_TIMEOUT_MS = 1_000;
/** Looks at the queue that one page has under way at once. */
const LOOKS_AT_ONCE = 8;

export type RolloutViewParts = Pick<
  RouteParts,
  "db" | "models" | "status" | "jobsOf" | "clock" | "videoLinks" | "publicUrl" | "retentionMs" | "log"
>;

export function createRolloutViews(parts: RolloutViewParts, progress: ProgressBoard): RolloutViews {
  const { db, models, status, jobsOf, clock, videoLinks, publicUrl, retentionMs, log } = parts;

  /** Whose worker has reported frames is running; otherwise the queue knows. */
  async function isRunning(rollout: Rollout): Promise<boolean> {
    if (rollout.status !== "dispatched") return false;
    if (progress.framesDone(rollout.id) !== null) return true;
    try {
      const job = jobsOf(rollout.model).find(jobIdOf(rollout.id, rollout.attempt), rollout.lane);
      return (await within(LOOK_TIMEOUT_MS, "find predict job", job))?.state === "active";
    } catch (error) {
      log.warn({ err: error, rollout_id: rollout.id }, "could not see whether a rollout is running; shown as queued");
      return false;
    }
  }

  /** Never rejects: whoever has just been charged is to hear of the rollout, with its place or without. */
  async function placeOf(rollout: Rollout): Promise<number | null> {
    if (rollout.status !== "queued") return null;
    return queuePosition(db, rollout).catch((error: unknown) => {
      log.warn({ err: error, rollout_id: rollout.id }, "could not count a rollout's place in the queue");
      return null;
    });
  }

  function secondsLeft({ id, frames }: Rollout): number {
    const [done, perSecond] = [progress.framesDone(id), progress.framesPerSecond(id)];
    return done === null || perSecond === null ? 0 : Math.max(0, frames - done) / perSecond;
  }

  /** Never rejects, as placeOf: a queue that is away must not make a paid rollout look refused. Null: nobody can tell. */
  async function outlookOf({ id, model, status: stored }: Rollout): Promise<PoolOutlook | null> {
    if (isTerminal(stored)) return null;
    return within(LOOK_TIMEOUT_MS, "tell how a pool does", status.outlookOf(model)).catch((error: unknown) => {
      log.warn({ err: error, rollout_id: id }, "could not tell how fast a pool is; Retry-After is a guess");
      return null;
    });
  }

  function retryAfterOf(
    rollout: Rollout,
    now: Pick<EnvelopeContext, "running" | "queuePosition" | "expectedStartS">,
    outlook: PoolOutlook | null,
  ): number | null {
    if (isTerminal(rollout.status)) return null;
    const { per_second = 0, cold_start_s = 0 } = outlook ?? {};
    return retryAfterS({
      position: now.queuePosition,
      starts_in_s: now.expectedStartS,
      running_s: now.running ? secondsLeft(rollout) : null,
      per_second,
      cold_start_s,
    });
  }

  async function envelope(
    rollout: Rollout,
    request: FastifyRequest,
    now: Pick<EnvelopeContext, "running" | "queuePosition" | "expectedStartS">,
  ): Promise<RolloutEnvelope> {
    return envelopeOf(rollout, {
      ...now,
      shapes: models.find(rollout.model)?.manifest.shapes ?? null,
      videos: await videoLinks.of(rollout, publicUrl(request), clock.now()),
      framesDone: progress.framesDone(rollout.id),
      retentionMs,
    });
  }

  return {
    async of(rollout, request) {
      const [running, queuePosition, outlook] = await Promise.all([
        isRunning(rollout),
        placeOf(rollout),
        outlookOf(rollout),
      ]);
      const place = queuePosition === null ? null : { position: queuePosition, lane: rollout.lane };
      const now = { running, queuePosition, expectedStartS: place && outlook && expectedStartS(place, outlook) };
      return { envelope: await envelope(rollout, request, now), retryAfterS: retryAfterOf(rollout, now, outlook) };
    },
    async ofPage(rollouts, request) {
      const shown: RolloutEnvelope[] = [];
      for (let at = 0; at < rollouts.length; at += LOOKS_AT_ONCE) {
        const views = rollouts.slice(at, at + LOOKS_AT_ONCE).map(async (rollout) => {
          const running = await isRunning(rollout);
          return envelope(rollout, request, { running, queuePosition: null, expectedStartS: null });
        });
        shown.push(...(await Promise.all(views)));
      }
      return shown;
    },
  };
}
