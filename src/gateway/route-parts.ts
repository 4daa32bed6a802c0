/** What the routes share: made once in app.ts. */
import type { FastifyRequest, onRequestAsyncHookHandler } from "fastify";

import type { MoneyMetrics } from "#ledger/metrics.ts";
import type { Stripe } from "#billing/stripe.ts";
import type { Quotas } from "#datasets/quotas.ts";
import type { PredictJobs } from "#queue/queues.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import type { VideoLinks } from "#rollouts/video-links.ts";

import type { Background } from "./background.ts";
import type { GatewayOptions } from "./gateway-parts.ts";
import type { ByteBudget } from "./input/byte-budget.ts";
import type { NormaliseFrame } from "#inputs/frame.ts";
import type { Model, Models } from "./models.ts";
import type { PayableCheck } from "./plugins/paid-form.ts";
import type { Unwanted } from "./predict/cancel.ts";
import type { Predictor } from "./predict/predict.ts";
import type { FinishWaits } from "./predict/wait.ts";
import type { RolloutViews } from "./rollout-view.ts";
import type { ServerStatus } from "./status.ts";

export interface RouteParts extends GatewayOptions {
  /** Null where Stripe is not configured. */
  readonly stripe: Stripe | null;
  readonly models: Models;
  readonly predictor: Predictor;
  readonly budget: ByteBudget;
  readonly normaliseFrame: NormaliseFrame;
  readonly status: ServerStatus;
  readonly money: MoneyMetrics;
  /** Throws ApiError(rate_limited) where that address, or this process, signs up too many. */
  readonly signupLimit: (ip: string) => Promise<void>;
  /** Predict queues by model. */
  readonly jobsOf: (model: string) => PredictJobs;
  /** Signs the gateway's own video links. */
  readonly videoSecret: Buffer;
  readonly videoLinks: VideoLinks;
  readonly rolloutViews: RolloutViews;
  /** Waits of those who ask for a rollout's state (`?wait=`); nothing is cancelled when they end. */
  readonly pollWaits: FinishWaits;
  /** Aborts when this server stops and takes nothing new: whoever waits for a state is told the one of now. */
  readonly draining: AbortSignal;
  /** Settled as cancelled and refunded, unless it had ended: as it then is. Null when there is no such rollout. */
  readonly cancelRollout: (rollout: Unwanted) => Promise<Rollout | null>;
  /** How long inputs and videos are kept after the end of their rollout. */
  readonly retentionMs: number;
  /** How long a dataset may wait for its owner. */
  readonly idleMs: number;
  readonly quotas: Quotas;
  /** First hooks of a route that needs a key: who, and how often. */
  readonly keyed: readonly onRequestAsyncHookHandler[];
  /** As `keyed`, and what must hold before a form is read: its type, its size, a balance that can pay for anything. */
  readonly paidForm: readonly onRequestAsyncHookHandler[];
  readonly payable: PayableCheck;
  readonly background: Background;
  /** The model of the base URL that was asked (`/m/<slug>` or the bare one). */
  readonly baseModel: (request: FastifyRequest) => Model;
  /** The base URL that the caller knows us by, without a model. */
  readonly publicUrl: (request: FastifyRequest) => string;
}
