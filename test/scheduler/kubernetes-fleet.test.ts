/** The Kubernetes driver against a cluster that behaves, and one that does not. What every fleet must do: fleet-conformance.ts. */
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";

import { KubernetesError } from "#scheduler/scaling/fleet/kubernetes-api.ts";
import { COST_ANNOTATION, deploymentOf } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { describeFleet, type FleetUnderTest, MODELS } from "./fleet-conformance.ts";
import { type KubernetesFixture, type KubernetesFixtureOptions, openKubernetes } from "./kubernetes-fixture.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

const opened: KubernetesFixture[] = [];
afterEach(async () => {
  for (const fixture of opened.splice(0)) await fixture.stop();
});

/** As the role that a scheduler has. */
async function open(options: Partial<KubernetesFixtureOptions> = {}): Promise<KubernetesFixture> {
  const fixture = await openKubernetes({ db: database.as("scheduler"), ...options });
  opened.push(fixture);
  return fixture;
}

/** KEDA looks all the time, and whoever asks for workers leads in the database, too. */
async function openForAnyFleet(): Promise<FleetUnderTest> {
  const k8s = await openKubernetes({
    db: database.as("scheduler"),
    models: MODELS,
    template: { fate: "waits", startMs: 1 },
  });
  await k8s.newEpoch();
  await database.db.query("UPDATE scheduler_leader SET epoch = 0");
  for (const keda of k8s.kedas) keda.start(10);
  const { cluster, driver } = k8s;
  const ifRuns =
    (order: (name: string) => void) =>
    async (name: string): Promise<void> => {
      if (cluster.pods.get(name)?.phase === "Running") order(name);
    };
  return {
    driver: {
      ...driver,
      async scale(model, desired, epoch) {
        await database.db.query("UPDATE scheduler_leader SET epoch = greatest(epoch, $1)", [epoch]);
        await driver.scale(model, desired, epoch);
      },
    },
    running: async (model) => cluster.podsOf(deploymentOf(model)).map(({ name }) => name),
    becomeReady: ifRuns((name) => cluster.becomeReady(name)),
    setJobs: (name, count) => ifRuns(() => cluster.setJobs(name, count))(name),
    die: ifRuns((name) => cluster.crash(name)),
    stop: () => k8s.stop(),
  };
}

describeFleet("Kubernetes", openForAnyFleet);

const POD = /^dream-worker-/;
const costs = ({ cluster, model }: KubernetesFixture): Record<string, string | undefined> =>
  Object.fromEntries(
    cluster.podsOf(deploymentOf(model)).map(({ name, annotations }) => [name, annotations.get(COST_ANNOTATION)]),
  );
const patches = ({ api }: KubernetesFixture): string[] => api.requests.filter((line) => line.startsWith("PATCH"));
const later = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

test("a pool goes from zero to what is wanted and back, and deletes nothing itself", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  expect(await k8s.driver.observe(k8s.model)).toEqual({
    ready: [],
    starting: [],
    draining: 0,
    crash_loop: null,
    starts_s: [],
  });

  const names = await k8s.grow(3, epoch);
  expect(names).toHaveLength(3);
  for (const name of names) expect(name).toMatch(POD);
  expect(patches(k8s)).toEqual([]);

  await k8s.grow(0, epoch);
  await vi.waitFor(() => expect(k8s.cluster.podsOf(deploymentOf(k8s.model))).toEqual([]));
  expect(k8s.api.requests.filter((line) => !/^(GET|PATCH) /.test(line))).toEqual([]);
});

test("scale-in takes the workers that have been idle longest, and marks them before the number falls", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const [first = "", second = "", third = "", fourth = ""] = await k8s.grow(4, epoch);
  // The first two were busy until just now, the third works, the fourth never did anything.
  for (const name of [first, second]) {
    k8s.cluster.setJobs(name, 1);
    await later();
    k8s.cluster.setJobs(name, 0);
    await later();
  }
  k8s.cluster.setJobs(third, 1);
  const { ready } = await k8s.driver.observe(k8s.model);
  expect(Object.fromEntries(ready.map(({ name, jobs }) => [name, jobs]))).toEqual({
    [first]: 0,
    [second]: 0,
    [third]: 1,
    [fourth]: 0,
  });

  const askedAtPatch: (number | null)[] = [];
  k8s.api.beforePatch(async () => void askedAtPatch.push(await askedOf(k8s)));
  await k8s.driver.scale(k8s.model, 2, epoch);
  expect(askedAtPatch).toEqual([4, 4]);
  expect(costs(k8s)).toEqual({ [first]: "-1", [second]: undefined, [third]: undefined, [fourth]: "-1" });

  expect(await k8s.keda.poll()).toBe(2);
  await vi.waitFor(() => expect(Object.keys(costs(k8s)).toSorted()).toEqual([second, third].toSorted()));
  expect(k8s.cluster.killedWithJobs).toEqual([]);
});

async function askedOf({ url }: KubernetesFixture): Promise<number | null> {
  const response = await fetch(url, { headers: { authorization: "Bearer a-token-for-keda-alone" } });
  return response.status === 200 ? ((await response.json()) as { desired: number }).desired : null;
}

test("the number never falls below the workers that have work; each goes once it is done", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const names = await k8s.grow(3, epoch);
  for (const name of names) k8s.cluster.setJobs(name, 1);
  await k8s.driver.observe(k8s.model);
  await k8s.driver.scale(k8s.model, 0, epoch);
  expect(await askedOf(k8s)).toBe(3);

  k8s.cluster.setJobs(names[1] ?? "", 0);
  await k8s.driver.observe(k8s.model);
  await k8s.driver.scale(k8s.model, 0, epoch);
  expect(await k8s.keda.poll()).toBe(2);
  await vi.waitFor(() =>
    expect(k8s.cluster.podsOf(deploymentOf(k8s.model)).map(({ name }) => name)).not.toContain(names[1]),
  );
  expect(k8s.cluster.killedWithJobs).toEqual([]);
});

test("a marked worker that is given a job loses its mark to an idle one, and nothing is patched twice", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const [first = "", second = ""] = await k8s.grow(2, epoch);
  await k8s.driver.scale(k8s.model, 1, epoch);
  await k8s.driver.scale(k8s.model, 1, epoch);
  await k8s.driver.observe(k8s.model);
  await k8s.driver.scale(k8s.model, 1, epoch);
  expect(patches(k8s)).toHaveLength(1);
  const marked = Object.entries(costs(k8s)).find(([, cost]) => cost === "-1")?.[0] ?? "";

  k8s.cluster.setJobs(marked, 1);
  await k8s.driver.observe(k8s.model);
  await k8s.driver.scale(k8s.model, 1, epoch);
  expect(costs(k8s)).toEqual({ [marked]: undefined, [marked === first ? second : first]: "-1" });
  expect(patches(k8s)).toHaveLength(3);

  // Wanted again: nobody is marked.
  await k8s.driver.scale(k8s.model, 2, epoch);
  expect(Object.values(costs(k8s))).toEqual([undefined, undefined]);
  expect(await askedOf(k8s)).toBe(2);
});

test("a worker that takes a job after it was chosen finishes it before it goes", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const [name = ""] = await k8s.grow(1, epoch);
  await k8s.driver.scale(k8s.model, 0, epoch);
  k8s.cluster.setJobs(name, 1);
  await k8s.keda.poll();
  expect(await k8s.driver.observe(k8s.model)).toMatchObject({ ready: [], draining: 1 });
  k8s.cluster.setJobs(name, 0);
  await vi.waitFor(async () => expect(await k8s.driver.observe(k8s.model)).toMatchObject({ draining: 0 }));
  expect(k8s.cluster.killedWithJobs).toEqual([]);
});

test("where a mark cannot be made, the pool keeps what is ready", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  await k8s.grow(2, epoch);
  k8s.api.fail(/^PATCH/, 409);
  await expect(k8s.driver.scale(k8s.model, 1, epoch)).rejects.toThrow(/could not mark which workers of pusht-small/);
  expect(await askedOf(k8s)).toBe(2);
  await k8s.driver.scale(k8s.model, 1, epoch);
  expect(await askedOf(k8s)).toBe(1);
});

test("a pod that went by itself needs no mark", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  await k8s.grow(1, epoch);
  k8s.cluster.scale(deploymentOf(k8s.model), 0);
  await vi.waitFor(() => expect(k8s.cluster.pods.size).toBe(0));
  await k8s.driver.scale(k8s.model, 0, epoch); // by the look from before
  expect(await askedOf(k8s)).toBe(0);
});

test("what an older leader asks for comes to nothing, in this process and in another", async () => {
  const k8s = await open();
  const old = await k8s.newEpoch();
  await k8s.driver.scale(k8s.model, 1, old);
  const epoch = await k8s.newEpoch();
  await k8s.driver.scale(k8s.model, 5, old); // it has not heard of the new term; the database has
  expect(await askedOf(k8s)).toBe(1);
  await k8s.driver.scale(k8s.model, 2, epoch);
  await k8s.driver.scale(k8s.model, 6, old);
  expect(await askedOf(k8s)).toBe(2);
});

test("a worker that does not say what it has counts as busy and is left in peace", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const [silent = "", idle = ""] = await k8s.grow(2, epoch);
  const pod = k8s.cluster.pods.get(silent);
  if (pod) pod.answers = false;
  const { ready } = await k8s.driver.observe(k8s.model);
  expect(ready.find(({ name }) => name === silent)?.jobs).toBe(1);
  await k8s.driver.scale(k8s.model, 0, epoch);
  expect(await askedOf(k8s)).toBe(1);
  expect(costs(k8s)).toEqual({ [silent]: undefined, [idle]: "-1" });
});

test("a pool of more pods than a page shows is seen whole, also when the server forgets in between", async () => {
  const k8s = await open({ pageItems: 2 });
  const epoch = await k8s.newEpoch();
  await k8s.grow(5, epoch);
  k8s.api.requests.length = 0;
  k8s.api.forgetContinuations();
  expect((await k8s.driver.observe(k8s.model)).ready).toHaveLength(5);
  // One page, a continuation that is refused (410), and three pages from the beginning.
  expect(k8s.api.requests.filter((line) => line.endsWith("/pods"))).toHaveLength(5);
});

test("an API server that is down or slow, or refuses, fails the look; the number stays until it is stale, then is an error", async () => {
  const k8s = await open({ timeoutMs: 1_000 });
  const epoch = await k8s.newEpoch();
  await k8s.grow(2, epoch);
  await k8s.api.pause();
  await expect(k8s.driver.observe(k8s.model)).rejects.toThrow(/the API server does not answer/);
  expect(await askedOf(k8s)).toBe(2);
  await database.db.query("UPDATE pools SET asked_at = now() - interval '16 s'");
  expect(await k8s.keda.poll()).toBeNull();
  expect(k8s.cluster.deployments.get(deploymentOf(k8s.model))?.replicas).toBe(2);

  await k8s.api.goOn();
  expect((await k8s.driver.observe(k8s.model)).ready).toHaveLength(2);
  for (const status of [403, 409, 429, 500]) {
    k8s.api.fail(/pods$/, status);
    await expect(k8s.driver.observe(k8s.model)).rejects.toThrow(new RegExp(`GET .*pods: ${status} told to fail`));
  }
  k8s.api.fail(/pods$/, "hang");
  const began = performance.now();
  await expect(k8s.driver.observe(k8s.model)).rejects.toThrow(KubernetesError);
  expect(performance.now() - began).toBeGreaterThan(900);
});

test("a token that expired is read again", async () => {
  const k8s = await open();
  await k8s.driver.observe(k8s.model);
  await k8s.api.rotateToken("token-2");
  await k8s.driver.observe(k8s.model);
  k8s.api.expireToken("token-3");
  await expect(k8s.driver.observe(k8s.model)).rejects.toThrow(/401 Unauthorized/);
  await k8s.api.rotateToken("token-3");
  await k8s.driver.observe(k8s.model);
});

test("cold starts are measured from creation to ready, once each, and those of before are somebody else's", async () => {
  let now = Date.parse("2026-11-22T12:00:00.400Z");
  const k8s = await open({ clock: { now: () => now }, template: { startMs: 60 } });
  const epoch = await k8s.newEpoch();
  k8s.cluster.scale(deploymentOf(k8s.model), 1);
  const [pod] = k8s.cluster.podsOf(deploymentOf(k8s.model));
  expect(await k8s.driver.observe(k8s.model)).toMatchObject({
    starting: [{ name: pod?.name, since_ms: Date.parse("2026-11-22T12:00:00Z") }],
  });
  now += 12_000;
  await vi.waitFor(() => expect(pod?.readyMs).not.toBeNull());
  expect((await k8s.driver.observe(k8s.model)).starts_s).toEqual([12]);
  expect((await k8s.driver.observe(k8s.model)).starts_s).toEqual([]);

  // Somebody else leads for a while.
  await k8s.driver.scale(k8s.model, 2, epoch);
  await k8s.keda.poll();
  now += 60_000;
  await vi.waitFor(() =>
    expect(k8s.cluster.podsOf(deploymentOf(k8s.model)).every(({ readyMs }) => readyMs !== null)).toBe(true),
  );
  expect(await k8s.driver.observe(k8s.model)).toMatchObject({ starts_s: [], ready: [{}, {}] });
});

test("a worker that dies and comes back is starting meanwhile, and that start counts from its new container", async () => {
  let now = Date.parse("2026-11-22T12:00:00Z");
  const k8s = await open({ clock: { now: () => now } });
  const epoch = await k8s.newEpoch();
  const [name = ""] = await k8s.grow(1, epoch);
  now += 5_000;
  k8s.cluster.crash(name);
  expect(await k8s.driver.observe(k8s.model)).toMatchObject({ ready: [], starting: [{ name, since_ms: now }] });
  now += 7_000; // back-off
  await vi.waitFor(() => expect(k8s.cluster.pods.get(name)?.readyMs).not.toBeNull());
  const { ready, starts_s, crash_loop } = await k8s.driver.observe(k8s.model);
  expect({ workers: ready.length, starts_s, crash_loop }).toEqual({ workers: 1, starts_s: [0], crash_loop: null });
});

test("a pod that was evicted is a record, and no worker", async () => {
  const k8s = await open();
  const epoch = await k8s.newEpoch();
  const [name = ""] = await k8s.grow(1, epoch);
  k8s.cluster.evict(name);
  await vi.waitFor(async () => {
    const { ready, starting, draining } = await k8s.driver.observe(k8s.model);
    expect([...ready, ...starting]).toHaveLength(1);
    expect(ready[0]?.name).not.toBe(name);
    expect(draining).toBe(0);
  });
  expect(k8s.cluster.podsOf(deploymentOf(k8s.model))).toHaveLength(2);
});

test("a crash loop is reported with what the container ended with", async () => {
  const k8s = await open({ template: { fate: "crashes", startMs: 1 } });
  k8s.cluster.scale(deploymentOf(k8s.model), 1);
  await vi.waitFor(async () => {
    const { ready, starting, crash_loop } = await k8s.driver.observe(k8s.model);
    expect([ready.length, starting.length]).toEqual([0, 1]);
    expect(crash_loop).toMatch(
      /^1 of 1 pods of dream-worker-pusht-small do not get ready; .*: CrashLoopBackOff, \d+ restarts, last end: Error, exit code 1$/,
    );
  });
});

test("an image that is not there is reported at once", async () => {
  const k8s = await open({ template: { fate: "no image" } });
  k8s.cluster.scale(deploymentOf(k8s.model), 1);
  const { starting, crash_loop } = await k8s.driver.observe(k8s.model);
  expect(starting).toHaveLength(1);
  expect(crash_loop).toMatch(/ImagePullBackOff: Back-off pulling image "dream-engine:none"/);
});

test.each([
  ["unschedulable", 180_000, /Unschedulable: 0\/3 nodes are available: 3 Insufficient nvidia.com\/gpu/],
  ["never ready", 300_000, /not ready after 300 s/],
] as const)("a pod that is %s is starting, and reported after %i ms", async (fate, afterMs, expected) => {
  let now = Date.parse("2026-11-22T12:00:00Z");
  const k8s = await open({ clock: { now: () => now }, template: { fate, startMs: 1 } });
  k8s.cluster.scale(deploymentOf(k8s.model), 1);
  now += afterMs - 1;
  expect(await k8s.driver.observe(k8s.model)).toMatchObject({ starting: [{}], crash_loop: null });
  now += 1;
  const { starting, crash_loop } = await k8s.driver.observe(k8s.model);
  expect(starting).toHaveLength(1);
  expect(crash_loop).toMatch(expected);
});

test("what keeps a Deployment from its number is reported: none there, a quota, nobody who scales it", async () => {
  let now = Date.now();
  const k8s = await open({ clock: { now: () => now } });
  const epoch = await k8s.newEpoch();
  const trouble = async (): Promise<string | null> => (await k8s.driver.observe(k8s.model)).crash_loop;
  const pass = async (seconds: number): Promise<void> => {
    for (let s = 0; s < seconds; s += 10) {
      await k8s.driver.observe(k8s.model);
      now += 10_000;
    }
  };
  await k8s.driver.scale(k8s.model, 2, epoch);
  await pass(50);
  expect(await trouble()).toBeNull();
  await pass(10);
  expect(await trouble()).toBe(
    "dream-worker-pusht-small has 0 replicas, and 2 are asked for since 60 s: see `kubectl describe scaledobject dream-worker-pusht-small`",
  );
  // In a new term it has to be asked anew.
  await k8s.driver.scale(k8s.model, 2, await k8s.newEpoch());
  expect(await trouble()).toBeNull();

  const deployment = k8s.cluster.deployments.get(deploymentOf(k8s.model));
  if (deployment) deployment.podsMax = 0;
  await k8s.keda.poll();
  expect(await trouble()).toBe("dream-worker-pusht-small cannot make pods: FailedCreate: exceeded quota: pods");

  k8s.cluster.deployments.clear();
  expect(await trouble()).toBe("there is no Deployment dream-worker-pusht-small");
});

test("the endpoint tells whoever has the token, of models that there are, what is fresh", async () => {
  const k8s = await open({ models: ["fresh"] });
  const get = async (
    path: string,
    token: string | null = "a-token-for-keda-alone",
    method = "GET",
  ): Promise<[number, unknown]> => {
    const headers = token === null ? {} : { authorization: `Bearer ${token}` };
    const response = await fetch(k8s.url.replace("/scaling/fresh", path), { method, headers });
    return [
      response.status,
      response.headers.get("content-type") === "application/json" ? await response.json() : null,
    ];
  };
  expect(await get("/scaling/fresh")).toEqual([
    503,
    { error: "no scheduler has said yet how many workers there should be" },
  ]);
  const epoch = await k8s.newEpoch();
  expect((await get("/scaling/fresh"))[0]).toBe(503);
  await k8s.driver.scale("fresh", 4, epoch);
  expect(await get("/scaling/fresh")).toEqual([
    200,
    { model: "fresh", desired: 4, age_s: expect.any(Number) as number },
  ]);
  await database.db.query("UPDATE pools SET asked_at = now() - interval '15.5 s'");
  expect(await get("/scaling/fresh")).toEqual([
    503,
    { error: "no scheduler has said for 15 s how many workers there should be" },
  ]);

  for (const token of [null, "", "a-token-for-keda-alon", "a-token-for-keda-alone-"])
    expect((await get("/scaling/fresh", token))[0]).toBe(401);
  expect((await get("/scaling/other"))[0]).toBe(404);
  expect((await get("/scaling/fresh", undefined, "POST"))[0]).toBe(405);
  expect((await get("/scaling/"))[0]).toBe(404);
});

test("outside a pod, and without a service account, it says what is missing", async () => {
  const { inClusterAccess } = await import("#scheduler/scaling/fleet/kubernetes-api.ts");
  await expect(inClusterAccess({})).rejects.toThrow(/expected to run in a pod/);
  await expect(inClusterAccess({ KUBERNETES_SERVICE_HOST: "10.0.0.1" }, "/nowhere")).rejects.toThrow(
    /automountServiceAccountToken/,
  );
});
