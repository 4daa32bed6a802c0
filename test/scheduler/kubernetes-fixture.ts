/** A fake cluster with one pool, the driver, a scheduler's endpoint over a real database, and what stands for KEDA. */
import { Registry } from "prom-client";
import { vi } from "vitest";

import type { Database } from "#platform/database.ts";
import { startMetricsServer } from "#platform/metrics.ts";
import { writePool } from "#pools/pool.ts";
import { tryLead } from "#rollouts/leader.ts";
import type { FleetDriver } from "#scheduler/scaling/fleet/fleet.ts";
import { createKubernetesApi, inClusterAccess } from "#scheduler/scaling/fleet/kubernetes-api.ts";
import { createScalingEndpoint } from "#scheduler/scaling/fleet/kubernetes-endpoint.ts";
import { deploymentOf, MODEL_LABEL, POOL_LABELS } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { createKubernetesFleet } from "#scheduler/scaling/fleet/kubernetes.ts";
import { type ApiServer, startApiServer } from "#test/support/kubernetes/api-server.ts";
import { type Cluster, createCluster, type PodTemplate } from "#test/support/kubernetes/cluster.ts";
import { createKeda, type Keda } from "#test/support/kubernetes/keda.ts";
import { poolRow } from "#test/support/pools.ts";
import { silentLog } from "#test/support/postgres.ts";

const TOKEN = "a-token-for-keda-alone";
const MAX_REPLICAS = 8;

export interface KubernetesFixture {
  /** The first one. */
  readonly model: string;
  readonly cluster: Cluster;
  readonly api: ApiServer;
  readonly driver: FleetDriver;
  /** Of the first model. */
  readonly keda: Keda;
  readonly kedas: readonly Keda[];
  /** Of the endpoint. */
  readonly url: string;
  /** A new term, with a row for the pool. */
  newEpoch(): Promise<bigint>;
  /** Observes, asks for as many, and has KEDA look, until it has so many ready workers. */
  grow(workers: number, epoch: bigint): Promise<string[]>;
  stop(): Promise<void>;
}

export interface KubernetesFixtureOptions {
  readonly db: Database;
  readonly models?: readonly [string, ...string[]];
  readonly template?: Partial<PodTemplate>;
  readonly pageItems?: number;
  /** Of a request to the API server. */
  readonly timeoutMs?: number;
  readonly clock?: { now(): number };
}

export async function openKubernetes(options: KubernetesFixtureOptions): Promise<KubernetesFixture> {
  const { db, models = ["pusht-small"], clock = { now: Date.now } } = options;
  const [model] = models;
  const cluster = createCluster(clock);
  for (const slug of models) {
    cluster.deploy(deploymentOf(slug), { ...options.template, labels: { ...POOL_LABELS, [MODEL_LABEL]: slug } });
  }
  const api = await startApiServer(cluster, options.pageItems === undefined ? {} : { pageItems: options.pageItems });
  const access = await inClusterAccess(api.env, api.folder);
  const driver = createKubernetesFleet({
    api: createKubernetesApi(access, { timeoutMs: options.timeoutMs ?? 3_000 }),
    namespace: access.namespace,
    models,
    db,
    clock,
    log: silentLog,
  });
  const endpoint = await startMetricsServer({
    port: 0,
    registry: new Registry(),
    log: silentLog,
    ready: () => true,
    also: createScalingEndpoint({ db, models, token: TOKEN, log: silentLog }),
  });
  const url = `http://127.0.0.1:${endpoint.port}/scaling/${model}`;
  const kedas = models.map((slug) => {
    const endpointUrl = url.replace(model, slug);
    return createKeda({
      cluster,
      deployment: deploymentOf(slug),
      url: endpointUrl,
      token: TOKEN,
      maxReplicas: MAX_REPLICAS,
    });
  });
  const [keda] = kedas;
  if (!keda) throw new Error("expected a model");

  return {
    model,
    cluster,
    api,
    driver,
    keda,
    kedas,
    url,
    newEpoch: () => raiseEpoch(db, models),
    async grow(workers, epoch) {
      for (let look = 0; look < 200; look++) {
        const { ready } = await driver.observe(model);
        await driver.scale(model, workers, epoch);
        await keda.poll();
        if (ready.length === workers) return ready.map(({ name }) => name);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      throw new Error(`the pool did not become ${workers}`);
    },
    async stop() {
      await Promise.all(kedas.map((each) => each.stop()));
      await driver.stop();
      await endpoint.stop();
      await api.stop();
      await cluster.stop();
    },
  };
}

/** Leads for a moment, because the epoch is what counts, and writes a row for each pool. */
export async function raiseEpoch(db: Database, models: readonly string[]): Promise<bigint> {
  // Whoever resigned gives the lock back with its connection, which the database notices a moment later.
  const leadership = await vi.waitFor(async () => {
    const leading = await tryLead(db, "test");
    if (!leading) throw new Error("somebody leads");
    return leading;
  });
  await leadership.resign();
  for (const model of models) {
    await writePool(db, leadership.epoch, poolRow({ model, fleet: "kubernetes", maximum: MAX_REPLICAS }));
  }
  return leadership.epoch;
}
