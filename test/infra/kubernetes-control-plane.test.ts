/**
 * The manifests and the driver on a real API server with the real controllers of Deployments: what our stand-in
 * (test/support/kubernetes) claims about them, they do. KEDA and the nodes are played: KUBERNETES_PROGRAMS names a folder with the
 * programs that infra/k8s/control-plane builds; without it, this is passed over.
 */
import { writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import { createKubernetesApi } from "#scheduler/scaling/fleet/kubernetes-api.ts";
import { COST_ANNOTATION, deploymentOf } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { createKubernetesFleet } from "#scheduler/scaling/fleet/kubernetes.ts";
import type { FleetDriver } from "#scheduler/scaling/fleet/fleet.ts";
import { type ControlPlane, startControlPlane } from "#test/support/kubernetes/control-plane.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { readAsked } from "#pools/asked.ts";

import { NAMESPACE, readOverlay, type Thing } from "./kubernetes-manifests.ts";
import { raiseEpoch } from "../scheduler/kubernetes-fixture.ts";

const { KUBERNETES_PROGRAMS: programs = "" } = process.env;
const MODEL = "pusht-small";
/** Of a machine under load. */
const WAIT = { timeout: 20_000, interval: 100 };
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
const DEPLOYMENT = `/apis/apps/v1/namespaces/${NAMESPACE}/deployments/${deploymentOf(MODEL)}`;

interface PodObject {
  readonly metadata: {
    readonly name: string;
    readonly annotations?: Record<string, string>;
    readonly deletionTimestamp?: string;
  };
}

describe.skipIf(programs === "")("on a real control plane", () => {
  let plane: ControlPlane;
  let database: TestDatabase;
  let driver: FleetDriver;
  let token: string;
  let epoch: bigint;
  const workers = new Map<string, { readonly server: Server; jobs: number; idleSinceMs: number }>();

  beforeAll(async () => {
    database = await createTestDatabase();
    plane = await startControlPlane(programs);
    await applyAll();
    const account = `/api/v1/namespaces/${NAMESPACE}/serviceaccounts/dream-scheduler/token`;
    const made = await plane.call("POST", account, {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: {},
    });
    token = (made.body["status"] as { token: string }).token;
    const tokenFile = join(plane.caFile, "..", "token");
    await writeFile(tokenFile, token);
    const api = createKubernetesApi({ url: plane.url, namespace: NAMESPACE, tokenFile, caFile: plane.caFile });
    const db = database.as("scheduler");
    driver = createKubernetesFleet({
      api,
      namespace: NAMESPACE,
      models: [MODEL],
      db,
      clock: { now: Date.now },
      log: silentLog,
    });
    epoch = await raiseEpoch(db, [MODEL]);
  });
  afterAll(async () => {
    await driver?.stop();
    for (const { server } of workers.values()) server.close().closeAllConnections();
    await plane?.stop();
    await database?.drop();
  });

  /** As `kubectl apply --server-side`; of custom resources, whose definitions are not there, `npm run check:k8s` sees to it. */
  async function applyAll(): Promise<void> {
    for (const thing of readOverlay("cpu-dev").things) {
      if (/^(ScaledObject|TriggerAuthentication|PodMonitor)$/.test(thing.kind)) continue;
      const { status, body } = await plane.call(
        "PATCH",
        `${pathOf(thing)}?fieldManager=test&force=true&fieldValidation=Strict`,
        thing,
        {
          type: "application/apply-patch+yaml",
        },
      );
      expect([200, 201], `${thing.kind} ${thing.metadata.name}: ${JSON.stringify(body["message"])}`).toContain(status);
    }
    const workers = await plane.call(
      "PATCH",
      `${DEPLOYMENT}/scale`,
      { spec: { replicas: 0 } },
      { type: "application/merge-patch+json" },
    );
    expect(workers.status).toBe(200);
  }

  async function pods(): Promise<PodObject[]> {
    const { body } = await plane.call("GET", `${PODS}?labelSelector=dream-engine/model=${MODEL}`);
    return body["items"] as PodObject[];
  }

  /** What KEDA and the autoscaler do. */
  async function follow(): Promise<void> {
    const asked = await readAsked(database.db, MODEL);
    const scaled = await plane.call(
      "PATCH",
      `${DEPLOYMENT}/scale`,
      { spec: { replicas: asked?.workers } },
      { type: "application/merge-patch+json" },
    );
    expect(scaled.status).toBe(200);
  }

  /** What a node does: gives the pod an address, starts its worker, and removes it once that has ended. */
  async function runPods(): Promise<void> {
    for (const { metadata } of await pods()) {
      const worker = workers.get(metadata.name);
      if (worker === undefined && metadata.deletionTimestamp === undefined) await startPod(metadata.name);
      if (worker?.jobs === 0 && metadata.deletionTimestamp !== undefined) {
        worker.server.close().closeAllConnections();
        const options = { kind: "DeleteOptions", apiVersion: "v1", gracePeriodSeconds: 0 };
        await plane.call("DELETE", `${PODS}/${metadata.name}`, options);
      }
    }
  }

  async function startPod(name: string): Promise<void> {
    const bound = await plane.call("POST", `${PODS}/${name}/binding`, {
      apiVersion: "v1",
      kind: "Binding",
      metadata: { name },
      target: { kind: "Node", name: "a-node" },
    });
    expect(bound.status).toBe(201);
    const worker = { server: createServer(), jobs: 0, idleSinceMs: Date.now() };
    worker.server.on("request", (_request, response) => {
      const idle_since_ms = worker.jobs > 0 ? null : worker.idleSinceMs;
      response.end(JSON.stringify({ state: "ready", model: MODEL, jobs: worker.jobs, idle_since_ms }));
    });
    // The port is the manifest's, so each pod has an address of its own.
    const podIP = `127.0.42.${workers.size + 1}`;
    workers.set(name, worker);
    await new Promise<void>((resolve) => worker.server.listen(9090, podIP, resolve));
    const now = new Date().toISOString().replace(/\.\d+/, "");
    const { status, body } = await plane.call(
      "PATCH",
      `${PODS}/${name}/status`,
      {
        status: {
          phase: "Running",
          podIP,
          podIPs: [{ ip: podIP }],
          conditions: [{ type: "Ready", status: "True", lastTransitionTime: now }],
          containerStatuses: [
            {
              name: "worker",
              image: "any",
              imageID: "any",
              ready: true,
              restartCount: 0,
              state: { running: { startedAt: now } },
            },
          ],
        },
      },
      { type: "application/merge-patch+json" },
    );
    expect(status, JSON.stringify(body["message"])).toBe(200);
  }

  test("a pool grows from zero, and shrinks by the idle ones, never by one with work", async () => {
    const nobody = { ready: [], starting: [], draining: 0, crash_loop: null, starts_s: [] };
    // A Deployment without a number starts with one pod.
    await vi.waitFor(async () => expect(await driver.observe(MODEL)).toEqual(nobody), WAIT);
    await driver.scale(MODEL, 4, epoch);
    await follow();
    await vi.waitFor(
      async () => expect(await driver.observe(MODEL)).toMatchObject({ starting: [{}, {}, {}, {}] }),
      WAIT,
    );
    await runPods();
    await vi.waitFor(async () => expect((await driver.observe(MODEL)).ready).toHaveLength(4), WAIT);

    // Neither the newest nor the oldest: two in the middle work, so no other rule of a ReplicaSet would spare them.
    const names = [...workers.keys()];
    const busy = names.slice(1, 3);
    for (const name of busy) Object.assign(workers.get(name) ?? {}, { jobs: 1 });
    const { ready } = await driver.observe(MODEL);
    expect(
      ready
        .filter(({ jobs }) => jobs > 0)
        .map(({ name }) => name)
        .toSorted(),
    ).toEqual(busy.toSorted());

    await driver.scale(MODEL, 0, epoch);
    expect(await readAsked(database.db, MODEL)).toMatchObject({ workers: 2 });
    const marked = (await pods()).filter(({ metadata }) => metadata.annotations?.[COST_ANNOTATION] === "-1");
    expect(marked.map(({ metadata }) => metadata.name).toSorted()).toEqual(
      names.filter((name) => !busy.includes(name)).toSorted(),
    );
    await follow();
    await vi.waitFor(async () => {
      await runPods();
      expect((await pods()).map(({ metadata }) => metadata.name).toSorted()).toEqual(busy.toSorted());
    }, WAIT);
    expect((await pods()).filter(({ metadata }) => metadata.deletionTimestamp !== undefined)).toEqual([]);

    for (const name of busy) Object.assign(workers.get(name) ?? {}, { jobs: 0 });
    await driver.observe(MODEL);
    await driver.scale(MODEL, 0, epoch);
    await follow();
    await vi.waitFor(async () => {
      await runPods();
      expect(await driver.observe(MODEL)).toEqual(nobody);
    }, WAIT);
  });

  test("the scheduler's account may do that and nothing else", async () => {
    await driver.scale(MODEL, 1, epoch);
    await follow();
    const name = await vi.waitFor(async () => {
      const [pod] = await pods();
      expect(pod).toBeDefined();
      return pod?.metadata.name ?? "";
    }, WAIT);
    const merge = { token, type: "application/merge-patch+json" };
    const labels = { metadata: { labels: { "dream-engine/model": "other" } } };
    // It takes a moment until a policy that was applied counts.
    await vi.waitFor(async () => {
      const { status, body } = await plane.call("PATCH", `${PODS}/${name}?dryRun=All`, labels, merge);
      expect([status, body["message"]]).toEqual([
        422,
        expect.stringContaining("the scheduler may change workers alone"),
      ]);
    }, WAIT);
    const image = [{ op: "replace", path: "/spec/containers/0/image", value: "other" }];
    const imaged = await plane.call("PATCH", `${PODS}/${name}`, image, { token, type: "application/json-patch+json" });
    expect(imaged.body["message"]).toContain("the scheduler may change nothing of what a pod runs");
    const note = await plane.call("PATCH", `${PODS}/${name}`, { metadata: { annotations: { note: "mine" } } }, merge);
    expect(note.body["message"]).toContain("the scheduler may change one annotation, the deletion cost");
    const tried: [what: string, method: string, path: string, body?: object][] = [
      ["delete a pod", "DELETE", `${PODS}/${name}`],
      ["read secrets", "GET", `/api/v1/namespaces/${NAMESPACE}/secrets`],
      ["scale by itself", "PATCH", `${DEPLOYMENT}/scale`, { spec: { replicas: 3 } }],
      ["look at other namespaces", "GET", "/api/v1/namespaces/kube-system/pods"],
      ["make a pod", "POST", PODS, { apiVersion: "v1", kind: "Pod", metadata: { name: "mine" } }],
    ];
    for (const [what, method, path, body] of tried) {
      const type = method === "PATCH" ? merge : { token };
      expect((await plane.call(method, path, body, type)).status, what).toBe(403);
    }
    const cost = { metadata: { annotations: { [COST_ANNOTATION]: "-1" } } };
    expect((await plane.call("PATCH", `${PODS}/${name}`, cost, merge)).status).toBe(200);
  });

  test("the namespace takes no pod that asks for more than it needs", async () => {
    const deployment = readOverlay("cpu-dev").named("Deployment", "dream-gateway");
    const { spec: pod } = deployment.spec.template;
    const containers = pod.containers.map((container) => ({
      ...container,
      securityContext: { capabilities: { add: ["NET_ADMIN"] } },
    }));
    const spec = { ...pod, containers };
    const { status, body } = await plane.call("POST", PODS, {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name: "greedy" },
      spec,
    });
    expect(status, JSON.stringify(body["message"])).toBe(403);
    expect(body["message"]).toMatch(/violates PodSecurity "restricted:latest"/);
  });
});

/** Of the kinds that we have. */
function pathOf({ kind, metadata, ...thing }: Thing): string {
  const version = thing["apiVersion"] as string;
  const base = version.includes("/") ? `/apis/${version}` : `/api/${version}`;
  const plural = kind.toLowerCase().replace(/y$/, "ie").replace(/ss$/, "sse") + "s";
  const scope = metadata.namespace === undefined ? "" : `/namespaces/${metadata.namespace}`;
  return `${base}${scope}/${plural}/${metadata.name}`;
}
