/** Customers with webhooks, rollouts that end, and notifiers that tell of it, each under its own process's role. */
import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Registry } from "prom-client";
import { expect } from "vitest";

import { createFsBlobs } from "#blobs/fs.ts";
import type { CustomerId, DatasetId, EndpointId, KeyId } from "#contract/ids.ts";
import { newDatasetId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { WEBHOOK_EVENTS } from "#contract/webhooks.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createOutbound } from "#platform/outbound.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { PUSHER } from "#test/gateway/support/models.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { createEndpoint, type Endpoint } from "#webhooks/endpoints.ts";
import { attemptsOf, type Delivery, listDeliveries, type LoggedAttempt } from "#webhooks/log.ts";
import { type NotifierOptions, startNotifier } from "#workers/notifier/notifier.ts";

export const PUBLIC_URL = "https://dream.example.com";

export interface Customer {
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
}

export interface Webhooks {
  readonly database: TestDatabase;
  readonly db: Database;
  readonly queues: QueueSystem;
  customer(): Promise<Customer>;
  endpoint(customer: Customer, url: string, events?: Endpoint["events"]): Promise<Endpoint>;
  /** An asynchronous rollout of theirs that has just ended. */
  ended(customer: Customer, overrides?: Parameters<typeof accept>[2], outcome?: Outcome): Promise<Rollout>;
  /** A dataset without rows. */
  dataset(customer: Customer): Promise<DatasetId>;
  /** Stopped with the rest, if not before. */
  notifier(overrides?: Partial<NotifierOptions>): Promise<Service>;
  /** Oldest first. */
  deliveries(customer: Customer, endpoint?: EndpointId): Promise<Delivery[]>;
  attempts(delivery: Delivery): Promise<LoggedAttempt[]>;
  /** Whatever waits for a retry is due at once. */
  dueNow(): Promise<void>;
  stop(): Promise<void>;
}

export async function startWebhooks(): Promise<Webhooks> {
  const database = await createTestDatabase();
  const { db } = database;
  const queues = await createPostgresQueues({ url: database.url, log: silentLog, migrate: true });
  const folder = await mkdtemp(join(tmpdir(), "dream-webhooks-"));
  const notifiers: Service[] = [];

  return {
    database,
    db,
    queues,
    customer: () => newCustomer(db),
    endpoint: (customer, url, events = WEBHOOK_EVENTS) =>
      createEndpoint(
        database.as("gateway"),
        customer.customer_id,
        { url, events: [...events], description: null },
        randomBytes,
      ),
    async ended(customer, overrides = {}, outcome = succeeded()) {
      const { id } = await accept(db, customer, { route: "rollouts", ...overrides });
      if (outcome.kind === "succeeded" || outcome.kind === "failed") await dispatch(db, id);
      const { rollout } = await settle(database.as("settlement"), id, null, outcome);
      if (!rollout) throw new Error("it was accepted above");
      await queues.signals.publish({ kind: "finished", rollout_id: id });
      return rollout;
    },
    async dataset({ customer_id, key_id }) {
      const id = newDatasetId(randomBytes);
      await db.query(
        `INSERT INTO datasets (id, customer_id, key_id, request_id, model, state, on_invalid, finished_at)
         VALUES ($1, $2, $3, 'req_test', 'pusher', 'completed', 'skip', now())`,
        [id, customer_id, key_id],
      );
      return id;
    },
    async notifier(overrides = {}) {
      const notifier = await startNotifier({
        db: database.as("notifier"),
        signals: queues.signals,
        blobs: createFsBlobs(folder),
        models: [PUSHER],
        publicUrl: PUBLIC_URL,
        retentionMs: 30 * 86_400_000,
        datasetIdleMs: 30 * 86_400_000,
        outbound: createOutbound({ allowPrivate: true }),
        clock: systemClock,
        random: randomBytes,
        log: silentLog,
        registry: new Registry(),
        ...overrides,
      });
      notifiers.push(notifier);
      return notifier;
    },
    async deliveries({ customer_id }, endpoint) {
      const filter = { endpoint: endpoint ?? null, rollout: null, dataset: null, state: null, after: null, limit: 200 };
      return (await listDeliveries(database.as("gateway"), customer_id, filter)).toReversed();
    },
    attempts: ({ id }) => attemptsOf(database.as("gateway"), id),
    async dueNow() {
      await db.query("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE claimed_until IS NULL");
      await queues.signals.publish({ kind: "finished", rollout_id: "any" });
    },
    async stop() {
      for (const notifier of notifiers) await notifier.stop();
      await queues.stop();
      await database.drop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Until `look` gives something that is neither false nor undefined. */
export async function until<T>(look: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  let found: T | undefined | false;
  await expect
    .poll(async () => ((found = await look()), found !== undefined && found !== false), {
      timeout: 30_000,
      interval: 20,
    })
    .toBe(true);
  return found as T; // the poll has just seen it
}
