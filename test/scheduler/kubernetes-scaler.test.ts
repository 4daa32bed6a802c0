/** The whole way in a cluster: work comes, the scaler decides, KEDA asks a scheduler, pods come and go; and a change of leaders. */
import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test } from "vitest";

import { systemClock } from "#platform/clock.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { deploymentOf } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { createPoolMetrics } from "#scheduler/scaling/metrics.ts";
import { type Scaler, startScaler } from "#scheduler/scaling/scaler.ts";
import { accept, dispatch } from "#test/support/ledger.ts";
import { silentLog } from "#test/support/postgres.ts";

import { eventually } from "../queue/test-queue.ts";
import { type KubernetesFixture, openKubernetes } from "./kubernetes-fixture.ts";
import { type Fixture, MODEL, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
let k8s: KubernetesFixture;
beforeAll(async () => {
  fixture = await openFixture();
  k8s = await openKubernetes({ db: fixture.database.as("scheduler"), models: [MODEL] });
  k8s.keda.start(20);
});
afterAll(async () => {
  await k8s.stop();
  await fixture.end();
});

async function lead(): Promise<{ readonly leadership: Leadership; readonly scaler: Scaler }> {
  const db = fixture.database.as("scheduler");
  const leadership = await eventually(() => tryLead(db, "test"));
  const scaler = await startScaler({
    db,
    queues: fixture.queues,
    models: fixture.models,
    scaling: {
      fleet: { kind: "kubernetes", driver: k8s.driver },
      limits: { minimum: 0, maximum: 3, scaledown_s: 2 },
    },
    epoch: leadership.epoch,
    scoredAtOnceMax: 2,
    clock: systemClock,
    log: silentLog,
    metrics: createPoolMetrics(new Registry()),
  });
  return { leadership, scaler };
}

const pods = (): string[] => k8s.cluster.podsOf(deploymentOf(MODEL)).map(({ name }) => name);

test("a pool comes from zero, outlives its leader and the API server's absence, ends no work, and is at zero again", async () => {
  const first = await lead();
  const { id } = await accept(fixture.database.db, fixture.key);
  await fixture.queues.signals.publish({ kind: "queued" });
  await eventually(async () => first.scaler.liveWorkers(MODEL) === 1);
  const [worker = ""] = pods();
  k8s.cluster.setJobs(worker, 1);
  await dispatch(fixture.database.db, id);

  // Nobody leads, then somebody else; meanwhile the cluster's own server is away.
  await first.scaler.stop();
  await first.leadership.resign();
  await k8s.api.pause();
  const second = await lead();
  await new Promise((resolve) => setTimeout(resolve, 500)); // looks that fail
  expect(second.scaler.liveWorkers(MODEL)).toBeNull();
  await k8s.api.goOn();
  await eventually(async () => second.scaler.liveWorkers(MODEL) === 1);

  // By the queue's count nothing is left to do, and the window passes; the worker says otherwise.
  await eventually(async () => {
    const [row] = await fixture.database.db.query<{ desired: number; asked: number }>(
      "SELECT desired, asked FROM pools",
    );
    return row?.desired === 0 && row.asked === 1;
  });
  expect(pods()).toEqual([worker]);
  k8s.cluster.setJobs(worker, 0);
  await eventually(async () => pods().length === 0);
  expect(k8s.cluster.killedWithJobs).toEqual([]);
  await second.scaler.stop();
  await second.leadership.resign();
});
