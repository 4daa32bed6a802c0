/**
 * KEDA's own operator, built from its sources, on a real control plane: whether it takes our ScaledObject, brings its token and heeds
 * what the endpoint says. The autoscaler that it makes is not run, so pools go from zero to one and back. As
 * kubernetes-control-plane.test.ts, with `keda` and its definitions (config/crd/bases/*.yaml of its sources) in the folder, too.
 */
import { readdirSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";

import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import { freePort } from "#cli/ports.ts";
import type { Service } from "#platform/lifecycle.ts";
import { startMetricsServer } from "#platform/metrics.ts";
import { askFor } from "#pools/asked.ts";
import { createScalingEndpoint } from "#scheduler/scaling/fleet/kubernetes-endpoint.ts";
import { deploymentOf } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { type ControlPlane, startControlPlane } from "#test/support/kubernetes/control-plane.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

import { NAMESPACE, parse, read, readOverlay } from "./kubernetes-manifests.ts";
import { raiseEpoch } from "../scheduler/kubernetes-fixture.ts";

const { KUBERNETES_PROGRAMS: programs = "" } = process.env;
const files = programs === "" ? [] : readdirSync(programs);
const MODEL = "pusht-small";
const NAME = deploymentOf(MODEL);
const TOKEN = "a-token-for-keda-alone";
/** It polls every five seconds. */
const WAIT = { timeout: 40_000, interval: 250 };
const DEPLOYMENT = `/apis/apps/v1/namespaces/${NAMESPACE}/deployments/${NAME}`;

describe.skipIf(!files.includes("keda"))("KEDA's operator", () => {
  let plane: ControlPlane;
  let database: TestDatabase;
  let endpoint: Service & { readonly port: number };
  let epoch: bigint;

  beforeAll(async () => {
    database = await createTestDatabase();
    epoch = await raiseEpoch(database.db, [MODEL]);
    const also = createScalingEndpoint({ db: database.db, models: [MODEL], token: TOKEN, log: silentLog });
    endpoint = await startMetricsServer({ port: 0, registry: new Registry(), log: silentLog, ready: () => true, also });
    plane = await startControlPlane(programs);
    const definitions = files.filter((name) => name.endsWith(".yaml"));
    for (const name of definitions)
      for (const definition of parse(read(join(programs, name))))
        await create(`/apis/apiextensions.k8s.io/v1/customresourcedefinitions`, definition);
    const { named } = readOverlay("cpu-dev");
    await create("/api/v1/namespaces", named("Namespace", NAMESPACE));
    await create(`/apis/apps/v1/namespaces/${NAMESPACE}/deployments`, named("Deployment", NAME));
    // KEDA reads whatever the workers' environment is made of, and does nothing where something of it is missing.
    await create(`/api/v1/namespaces/${NAMESPACE}/configmaps`, named("ConfigMap", "dream-settings"));
    await createSecret("dream-queue", { REDIS_URL: "redis://redis:6379" });
    await createSecret("dream-scaling", { SCALING_TOKEN: TOKEN });
    const keda = `/apis/keda.sh/v1alpha1/namespaces/${NAMESPACE}`;
    await vi.waitFor(async () => expect((await plane.call("GET", `${keda}/scaledobjects`)).status).toBe(200), WAIT);
    await create(`${keda}/triggerauthentications`, named("TriggerAuthentication", NAME));
    // Only where the endpoint is differs.
    const object = JSON.parse(
      JSON.stringify(named("ScaledObject", NAME)).replace(/http:[^"]*:9090/, `http://127.0.0.1:${endpoint.port}`),
    ) as object;
    await create(`${keda}/scaledobjects`, object);
    await startOperator();
  });
  afterAll(async () => {
    await plane?.stop();
    await endpoint?.stop();
    await database?.drop();
  });

  async function create(path: string, object: object): Promise<void> {
    const { status, body } = await plane.call("POST", path, object);
    expect(status, `${path}: ${JSON.stringify(body["message"])}`).toBe(201);
  }

  const createSecret = (name: string, stringData: Record<string, string>): Promise<void> =>
    create(`/api/v1/namespaces/${NAMESPACE}/secrets`, {
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name },
      stringData,
    });

  async function startOperator(): Promise<void> {
    const certificates = join(dirname(plane.caFile), "keda");
    await mkdir(certificates);
    await copyFile(plane.caFile, join(certificates, "ca.crt"));
    await copyFile(plane.caFile, join(certificates, "tls.crt"));
    await copyFile(join(dirname(plane.caFile), "tls.key"), join(certificates, "tls.key"));
    const [probes, metrics] = await Promise.all([freePort(), freePort()]);
    plane.run(
      "keda",
      [
        `--cert-dir=${certificates}`,
        `--health-probe-bind-address=127.0.0.1:${probes}`,
        "--metrics-bind-address=0",
        `--metrics-service-bind-address=127.0.0.1:${metrics}`,
        "--enable-webhook-patching=false",
        "--enable-apiservice-patching=false",
      ],
      { WATCH_NAMESPACE: NAMESPACE, KEDA_CLUSTER_OBJECT_NAMESPACE: NAMESPACE, POD_NAMESPACE: NAMESPACE },
    );
  }

  const replicas = async (): Promise<unknown> => {
    const { body } = await plane.call("GET", DEPLOYMENT);
    return (body["spec"] as { replicas: unknown }).replicas;
  };

  test(
    "takes the number from the endpoint: to one from zero, to zero, and nowhere when nobody renews it",
    { timeout: 200_000 },
    async () => {
      // A new Deployment has one.
      await askFor(database.db, epoch, MODEL, 0);
      const renewing = setInterval(() => void database.db.query("UPDATE pools SET asked_at = now()"), 500);
      try {
        await vi.waitFor(async () => expect(await replicas(), plane.lastWords()).toBe(0), WAIT);
        await askFor(database.db, epoch, MODEL, 3);
        await vi.waitFor(async () => expect(await replicas()).toBe(1), WAIT);
      } finally {
        clearInterval(renewing);
      }
      const hpa = await plane.call(
        "GET",
        `/apis/autoscaling/v2/namespaces/${NAMESPACE}/horizontalpodautoscalers/keda-hpa-${NAME}`,
      );
      expect(hpa.body["spec"]).toMatchObject({
        minReplicas: 1,
        maxReplicas: 4,
        metrics: [{ type: "External", external: { target: { type: "AverageValue", averageValue: "1" } } }],
        behavior: { scaleDown: { stabilizationWindowSeconds: 0, tolerance: "0" }, scaleUp: { tolerance: "0" } },
      });

      // Stale, and wrong at that: it would be zero.
      await database.db.query("UPDATE pools SET asked = 0, asked_at = now() - interval '16 s'");
      await new Promise((resolve) => setTimeout(resolve, 12_000)); // two of its looks
      expect(await replicas()).toBe(1);
      await askFor(database.db, epoch, MODEL, 0);
      await vi.waitFor(async () => expect(await replicas()).toBe(0), WAIT);
    },
  );
});
