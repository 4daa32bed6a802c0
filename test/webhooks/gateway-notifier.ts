/** A notifier for what customers of a test gateway ask for, under its own role. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";

import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createOutbound } from "#platform/outbound.ts";
import { PUSHER } from "#test/gateway/support/models.ts";
import type { TestGateway } from "#test/gateway/support/test-gateway.ts";
import { silentLog } from "#test/support/postgres.ts";
import { NOTIFIER_BOUNDS, startNotifier } from "#workers/notifier/notifier.ts";

/** `timeoutMs`: how long a receiver has. */
export const startNotifierBeside = (t: TestGateway, timeoutMs: number): Promise<Service> =>
  startNotifier({
    db: t.as("notifier"),
    signals: t.queues.signals,
    blobs: t.blobs,
    models: [PUSHER],
    publicUrl: null,
    retentionMs: 1,
    datasetIdleMs: 1,
    outbound: createOutbound({ allowPrivate: true }),
    clock: systemClock,
    random: randomBytes,
    log: silentLog,
    registry: new Registry(),
    bounds: { ...NOTIFIER_BOUNDS, timeoutMs },
  });
