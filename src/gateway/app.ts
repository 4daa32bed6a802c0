/**
 * The gateway as a Fastify instance: its parts, its hooks in their order, its routes. Nothing listens yet (server.ts).
 *
 * Order of a request: request id → log and metrics → (draining: 503) → base URL's model (404) → key (401) → rate
 * (429) → headers of the form (413, 415) → balance (402) → body (400, 422) → debit (402) → wait → answer.
 */
import multipart from "@fastify/multipart";
import { fastify, type FastifyBaseLogger, type FastifyInstance, type FastifyRequest, LogController } from "fastify";

import { createStripe } from "#billing/stripe.ts";
import { ApiError } from "#contract/errors.ts";
import { newRequestId } from "#contract/ids.ts";
import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { datasetIdleMsOf } from "#datasets/idle.ts";
import { quotasOf } from "#datasets/quotas.ts";
import { startUsageNotes } from "#keys/usage.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import { connectAlone } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import { predictJobs } from "#queue/queues.ts";
import { createAcceptor } from "#rollouts/acceptor.ts";
import { backlogLimitsOf } from "#rollouts/backlog-limits.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import { createTurns } from "#rollouts/turns.ts";
import { createVideoLinks } from "#rollouts/video-links.ts";

import { createBacklogGuard } from "./backlog-guard.ts";
import { createBackground } from "./background.ts";
import { DEFAULT_BOUNDS, type GatewayOptions } from "./gateway-parts.ts";
import { createByteBudget } from "./input/byte-budget.ts";
import { createFrameNormaliser } from "#inputs/frame.ts";
import { LEASE_TIMEOUT_MS, startLease } from "./lease.ts";
import { createModels, type Model } from "./models.ts";
import { addAnswerEnd } from "./plugins/answer-end.ts";
import { addArrivalBounds } from "./plugins/arrival.ts";
import { addErrors, answerFrameworkError, createClientErrorAnswer } from "./plugins/errors.ts";
import { addHttpMetrics } from "./plugins/http-metrics.ts";
import { createKeyCheck } from "./plugins/keys.ts";
import { addOpenApi } from "./plugins/openapi.ts";
import { checkFormHeaders, createBalanceCheck, createPayableCheck } from "./plugins/paid-form.ts";
import { createKeyRateLimit } from "./plugins/rate-limit.ts";
import { addRequestId } from "./plugins/request-id.ts";
import { addRequestLog } from "./plugins/request-log.ts";
import { addSecurityHeaders } from "./plugins/security-headers.ts";
import { cancel } from "./predict/cancel.ts";
import { createPredictor } from "./predict/predict.ts";
import { createFinishWaits } from "./predict/wait.ts";
import { startProgressBoard } from "./progress-board.ts";
import { createRolloutViews, type RolloutViewParts } from "./rollout-view.ts";
import type { RouteParts } from "./route-parts.ts";
import { addAdminRoutes } from "./routes/admin.ts";
import { addDashboardRoutes } from "./routes/dashboard.ts";
import { addBillingRoutes } from "./routes/billing.ts";
import { addDatasetActionRoutes } from "./routes/dataset-actions.ts";
import { addDatasetRoutes } from "./routes/datasets.ts";
import { addDatasetVideoRoute } from "./routes/dataset-videos.ts";
import { addKeyRoutes } from "./routes/keys.ts";
import { addMetricsRoute } from "./routes/metrics.ts";
import { addModelRoutes } from "./routes/models.ts";
import { addPredictRoutes } from "./routes/predict.ts";
import { addPriceRoute } from "./routes/prices.ts";
import { addRolloutListRoute } from "./routes/rollout-list.ts";
import { addRolloutRoutes } from "./routes/rollouts.ts";
import { addSignupRoute, createSignupLimit } from "./routes/signup.ts";
import { addStatementRoute } from "./routes/statement.ts";
import { addLivenessRoute, addReadinessRoute, addStatusRoute } from "./routes/status.ts";
import { addUploadRoutes } from "./routes/uploads.ts";
import { addVideoRoute } from "./routes/videos.ts";
import { addStripeWebhookRoute } from "./routes/stripe-webhook.ts";
import { addTopupPages, addTopupRoute } from "./routes/topup.ts";
import { addWebhookDeliveryRoutes } from "./routes/webhook-deliveries.ts";
import { addWebhookRoutes } from "./routes/webhooks.ts";
import { createServerStatus } from "./status.ts";

/** Headers have to be in within this; bodies by route: plugins/arrival.ts. */
const HEADERS_ARRIVE_WITHIN_MS = 60_000;
/** Silence on a socket; above the longest synchronous wait, during which nothing is sent. */
const SOCKET_SILENCE_MAX_MS = 320_000;
/** Above the idle time of the usual load balancers (60 s), so that the closing end is never ours. */
const KEEP_ALIVE_MS = 72_000;

export interface Gateway {
  readonly app: FastifyInstance;
  /** New requests get 503; those that wait go on. */
  drain(): void;
  /** Cancels and refunds what still waits. */
  cancelWaiting(): void;
}

export async function createGateway(options: GatewayOptions): Promise<Gateway> {
  const { config, db, queues, clock, random, log, registry, bounds = DEFAULT_BOUNDS } = options;
  const models = createModels(options.bundles, config.DEFAULT_MODEL);
  const stopping = new AbortController();
  const draining = new AbortController();

  const app: FastifyInstance = fastify({
    loggerInstance: quietLog(log),
    // plugins/request-log.ts writes our own line.
    logController: new LogController({ disableRequestLogging: true }),
    // Behind them request.ip is the caller's, and without PUBLIC_URL the host that it used.
    trustProxy: config.TRUSTED_PROXIES === undefined ? false : [...config.TRUSTED_PROXIES],
    genReqId: () => newRequestId(random),
    bodyLimit: BODY_BYTES_MAX,
    // Of any request; Node has no other bound for one route than for another.
    requestTimeout: bounds.arrival.steadyBodyMs + HEADERS_ARRIVE_WITHIN_MS,
    http: { headersTimeout: HEADERS_ARRIVE_WITHIN_MS },
    connectionTimeout: SOCKET_SILENCE_MAX_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    forceCloseConnections: "idle",
    // The draining hook below answers in our own form.
    return503OnClosing: false,
    frameworkErrors: answerFrameworkError,
    clientErrorHandler: createClientErrorAnswer(random, log),
    ajv: { customOptions: { verbose: true, removeAdditional: false } },
  });

  const background = createBackground(log);
  const jobsOf = (model: string) => predictJobs(queues, model);
  const waits = await createFinishWaits({ db, queues, clock, log });
  // Apart from those: a rollout whose caller went away is cancelled, also while somebody asks how it is.
  const pollWaits = await createFinishWaits({ db, queues, clock, log });
  const progress = await startProgressBoard(queues.signals, clock);
  const lease = await startLease({ connect: () => connectAlone(db, LEASE_TIMEOUT_MS), random, log });
  const limiter = options.rateLimiter;
  const usage = startUsageNotes({ db, clock, log });
  const money = moneyMetricsOf(registry);
  const keyed = [
    createKeyCheck(app, { db, auth: config.AUTH, clock, random, limiter, usage }),
    createKeyRateLimit(limiter),
  ];

  const payable = createPayableCheck(db, models);

  const videoSecret = await sharedSecret(db, "video_url", random);
  const cancelParts = { ...options, money, turns: createTurns(), stopping: stopping.signal };
  const status = createServerStatus({ db, clock, models, pools: options.pools, jobsOf });
  const viewParts: RolloutViewParts = {
    db,
    models,
    status,
    jobsOf,
    clock,
    log,
    videoLinks: createVideoLinks({ secret: videoSecret, blobs: options.blobs }),
    retentionMs: retentionMsOf(config),
    // Without a public URL, callers know us by the address they used; a request of HTTP/1.0 does not say it.
    publicUrl: ({ host, socket }) =>
      config.PUBLIC_URL ?? `http://${host || `${socket.localAddress}:${socket.localPort}`}`,
  };
  const parts: RouteParts = {
    ...options,
    ...viewParts,
    idleMs: datasetIdleMsOf(config),
    quotas: quotasOf(config),
    money,
    stripe: createStripe(config),
    budget: createByteBudget(),
    normaliseFrame: createFrameNormaliser(),
    videoSecret,
    rolloutViews: createRolloutViews(viewParts, progress),
    pollWaits,
    draining: draining.signal,
    cancelRollout: (rollout) => cancel(cancelParts, rollout),
    keyed,
    signupLimit: createSignupLimit(options),
    paidForm: [...keyed, checkFormHeaders, createBalanceCheck(db, clock, payable)],
    payable,
    background,
    baseModel: (request) => baseModelOf(request) ?? models.ofBaseUrl(undefined),
    predictor: createPredictor({
      ...options,
      ...cancelParts,
      acceptor: createAcceptor(db),
      backlog: createBacklogGuard({ db, clock, limits: backlogLimitsOf(config), status }),
      waits,
      background,
      waiterId: lease.id,
      syncDeadlineMs: bounds.syncDeadlineMs,
    }),
  };

  addErrors(app, registry);
  addAnswerEnd(app);
  addRequestId(app);
  addRequestLog(app, log);
  addHttpMetrics(app, registry);
  addSecurityHeaders(app);
  addArrivalBounds(app, bounds.arrival);
  app.addHook("onRequest", async () => {
    if (draining.signal.aborted) throw new ApiError("shutting_down", "the server is stopping; try again");
  });
  // A connection that stayed open would keep the server from closing.
  app.addHook("onSend", async (_request, reply) => {
    if (draining.signal.aborted) reply.header("Connection", "close");
  });
  await app.register(multipart);
  await addOpenApi(app);

  addMetricsRoute(app, parts);
  await addAdminRoutes(app, parts);
  await addDashboardRoutes(app, {
    ...parts,
    dashboardSecret: await sharedSecret(db, "dashboard_session", random),
  });
  addReadinessRoute(app, parts);
  addVideoRoute(app, parts);
  addDatasetVideoRoute(app, parts);
  addTopupPages(app);
  addModelScopedRoutes(app, parts);
  await app.register(
    async (scoped) => {
      scoped.decorateRequest("baseModel", null);
      scoped.addHook<{ Params: { base_model: string } }>("onRequest", async (request) => {
        request.baseModel = models.ofBaseUrl(request.params.base_model);
      });
      addModelScopedRoutes(scoped, parts);
    },
    { prefix: "/m/:base_model" },
  );

  app.addHook("onClose", async () => {
    draining.abort();
    stopping.abort();
    await waits.stop();
    await pollWaits.stop();
    await progress.stop();
    await background.settled();
    await usage.stop();
    await lease.stop();
  });
  await app.ready();
  return {
    app,
    drain: () => draining.abort(),
    cancelWaiting: () => stopping.abort(),
  };
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set below /m/<slug>. */
    baseModel?: Model | null;
  }
}

/** For Fastify and its plugins, which at "trace" and "debug" write out headers, keys included. */
function quietLog(log: Log): FastifyBaseLogger {
  return log.isLevelEnabled("debug") ? log.child({}, { level: "info" }) : log;
}

const baseModelOf = (request: FastifyRequest): Model | null => request.baseModel ?? null;

/** What answers under every base URL. */
function addModelScopedRoutes(app: FastifyInstance, parts: RouteParts): void {
  addLivenessRoute(app);
  addModelRoutes(app, parts);
  addStatusRoute(app, parts);
  addPredictRoutes(app, parts);
  addRolloutRoutes(app, parts);
  addRolloutListRoute(app, parts);
  addUploadRoutes(app, parts);
  addDatasetRoutes(app, parts);
  addDatasetActionRoutes(app, parts);
  addBillingRoutes(app, parts);
  addPriceRoute(app, parts);
  addTopupRoute(app, parts);
  addKeyRoutes(app, parts);
  addWebhookRoutes(app, parts);
  addWebhookDeliveryRoutes(app, parts);
  addSignupRoute(app, parts);
  addStatementRoute(app, parts);
  addStripeWebhookRoute(app, parts);
}
