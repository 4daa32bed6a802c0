/**
 * The manifests in infra/k8s, as they are rendered: whether what they name exists, in them and in the program. Whether an API server
 * would take them, `npm run check:k8s` says, which needs Go.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";

import { describe, expect, test } from "vitest";

import { ASYNC_RUN_MAX_MS } from "#contract/limits.ts";
import { loadManifests } from "#platform/bundles.ts";
import { readConfig, SETTINGS } from "#platform/config.ts";
import type { Sql } from "#platform/database.ts";
import { PARTS } from "#platform/roles.ts";
import { createScalingEndpoint } from "#scheduler/scaling/fleet/kubernetes-endpoint.ts";
import { deploymentOf, MODEL_LABEL, POOL_LABELS } from "#scheduler/scaling/fleet/kubernetes-pods.ts";
import { silentLog } from "#test/support/postgres.ts";
import { readWorkerSettings } from "#workers/inference/settings.ts";

import {
  containerOf,
  digestOfSources,
  FOLDER,
  type Labels,
  NAMESPACE,
  overlays,
  parse,
  podOf,
  read,
  readOverlay,
  secretRefsOf,
  type Thing,
} from "./kubernetes-manifests.ts";
import { selects } from "./network-policies.ts";

const models = (await loadManifests("models")).map(({ slug }) => slug);
const processes = PARTS.map((part) => `dream-${part}`);
const namesOf = (things: readonly Thing[]): string[] => things.map(({ metadata }) => metadata.name).toSorted();
const portsOf = (thing: Thing): string[] => (containerOf(thing).ports ?? []).map(({ name }) => name);

test("what is rendered is of these sources", () => {
  expect(overlays.toSorted()).toEqual(["cpu-dev", "gpu-production"]);
  const heads = overlays.map((name) => read(join(FOLDER, "rendered", `${name}.yaml`)).split("\n", 1)[0]);
  for (const head of heads) expect(head, "npm run check:k8s -- -write").toContain(digestOfSources());
});

/** What a process may be told beside its settings. */
const OTHERS = new Set([
  "DRAIN_S",
  "AWS_ACCESS_KEY_ID",
  "AWS_SECRET_ACCESS_KEY",
  ...PARTS.map((part) => `${part.toUpperCase()}_DB_PASSWORD`),
]);
const SECRETS: Labels = {
  DATABASE_URL: "postgres://user:password@host:5432/dream",
  REDIS_URL: "redis://:password@host:6379/0",
  STRIPE_SECRET_KEY: "sk_live_1",
  STRIPE_WEBHOOK_SECRET: "whsec_1",
};

describe.each(overlays)("%s", (overlay) => {
  const { things, workloads, ours, of, named, runs } = readOverlay(overlay);

  test("has every process, every model's workers, and the setup", () => {
    expect(namesOf(of("Deployment"))).toEqual([...processes, ...models.map(deploymentOf)].toSorted());
    for (const part of PARTS) expect(containerOf(named("Deployment", `dream-${part}`)).args).toEqual([part]);
    expect(containerOf(named("Job", "dream-setup")).args).toEqual(["database", "roles"]);
    const ofCluster = /^(Namespace|ValidatingAdmissionPolicy(Binding)?)$/;
    for (const { kind, metadata } of things) {
      expect(metadata.namespace, `${kind} ${metadata.name}`).toBe(ofCluster.test(kind) ? undefined : NAMESPACE);
    }
  });

  /** The environment of a process, with something for each secret. */
  function environmentOf(thing: Thing): Labels {
    const { env = [], envFrom = [] } = containerOf(thing);
    const maps = envFrom.map(({ configMapRef }) => named("ConfigMap", configMapRef.name).data);
    const settings: Labels = Object.assign({}, ...maps) as Labels;
    for (const { name, value, valueFrom } of env) {
      expect(settings[name], `${name} twice`).toBeUndefined();
      expect(value === undefined, name).toBe(valueFrom !== undefined);
      settings[name] = value ?? SECRETS[name] ?? "a-secret-of-somebody";
    }
    return settings;
  }

  test.each(namesOf(ours))("%s is told nothing that the program does not understand", (name) => {
    const thing = ours.find(({ metadata }) => metadata.name === name);
    const settings = thing ? environmentOf(thing) : {};
    expect(Object.keys(settings).filter((variable) => !(variable in SETTINGS) && !OTHERS.has(variable))).toEqual([]);
    expect(() => readConfig(settings)).not.toThrow();
    const programs = thing ? (containerOf(thing).command ?? []).slice(1) : [];
    expect(programs.filter((path) => !existsSync(path))).toEqual([]);
  });

  test("all listen where their ports and probes say, and know where the videos are", () => {
    for (const thing of of("Deployment")) {
      const config = readConfig(environmentOf(thing));
      expect(config).toMatchObject({ HOST: "0.0.0.0", PORT: 8080, METRICS_PORT: 9090 });
      expect(config.BLOB_URL).toMatch(/^s3:/);
      const isGateway = thing.metadata.name === "dream-gateway";
      const expected = isGateway ? { name: "http", containerPort: 8080 } : { name: "metrics", containerPort: 9090 };
      expect(containerOf(thing).ports).toEqual([expected]);
      const { startupProbe, livenessProbe, readinessProbe } = containerOf(thing);
      for (const probe of [startupProbe, livenessProbe, readinessProbe])
        expect(probe?.httpGet?.port).toBe(expected.name);
      expect(livenessProbe?.httpGet?.path).toBe("/healthz");
      expect(readinessProbe?.httpGet?.path).toBe("/readyz");
    }
  });

  test("no process gets a secret that it has no use for", () => {
    const got = Object.fromEntries(
      ours.map((thing) => [thing.metadata.name, [...new Set(secretRefsOf(thing).map(({ name }) => name))].toSorted()]),
    );
    expect(got).toEqual({
      ...Object.fromEntries(processes.map((name) => [name, ["dream-queue", name].toSorted()])),
      "dream-scheduler": ["dream-queue", "dream-scaling", "dream-scheduler"],
      "dream-setup": ["dream-setup"],
      ...Object.fromEntries(models.map((slug) => [deploymentOf(slug), ["dream-queue", "dream-worker"]])),
      ...(overlay === "cpu-dev" && { "dream-bucket": ["dream-stores"] }),
    });
    const workersKeys = models
      .flatMap((slug) => secretRefsOf(named("Deployment", deploymentOf(slug))))
      .map(({ key }) => key);
    expect([...new Set(workersKeys)].toSorted()).toEqual(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "REDIS_URL"]);
  });

  test("only the scheduler has an account, with the rights that its driver uses", () => {
    for (const thing of workloads) {
      const { automountServiceAccountToken, serviceAccountName } = podOf(thing).spec;
      const expected = thing.metadata.name === "dream-scheduler" ? [true, "dream-scheduler"] : [false, undefined];
      expect([automountServiceAccountToken, serviceAccountName], thing.metadata.name).toEqual(expected);
    }
    expect(of("Role").map((role) => [role.metadata.name, role["rules"]])).toEqual([
      [
        "dream-scheduler",
        [
          { apiGroups: [""], resources: ["pods"], verbs: ["list", "patch"] },
          { apiGroups: ["apps"], resources: ["deployments"], verbs: ["get"] },
        ],
      ],
    ]);
    const account = named("ServiceAccount", "dream-scheduler").metadata.name;
    expect(named("RoleBinding", "dream-scheduler")["subjects"]).toEqual([
      { kind: "ServiceAccount", name: account, namespace: NAMESPACE },
    ]);
  });

  test("services, budgets, autoscalers and monitors name what is there", () => {
    for (const { metadata, spec } of of("Service")) {
      const targets = runs(spec.selector as unknown as Labels); // a service's selector is a plain map
      expect(targets, metadata.name).toHaveLength(1);
      const wanted = (spec["ports"] as { targetPort: string }[]).map(({ targetPort }) => targetPort);
      expect(targets.flatMap(portsOf)).toEqual(expect.arrayContaining(wanted));
    }
    const budgeted = of("PodDisruptionBudget").flatMap(({ spec }) => runs(spec.selector.matchLabels));
    expect(namesOf(budgeted)).toEqual(namesOf(of("Deployment")));
    for (const scaler of [...of("HorizontalPodAutoscaler"), ...of("ScaledObject")]) {
      // Whose replicas somebody else sets has none of its own, or each `apply` would set them back.
      expect(named("Deployment", scaler.spec.scaleTargetRef.name).spec["replicas"]).toBeUndefined();
    }
    const monitored = of("PodMonitor").flatMap(({ spec }) => {
      const chosen = of("Deployment").filter((thing) => selects(spec.selector, podOf(thing).metadata.labels));
      const wanted = (spec["podMetricsEndpoints"] as { port: string }[]).map(({ port }) => port);
      for (const thing of chosen) expect(portsOf(thing)).toEqual(expect.arrayContaining(wanted));
      return chosen;
    });
    expect(namesOf(monitored)).toEqual(overlay === "cpu-dev" ? [] : namesOf(of("Deployment")));
  });

  test.each(models)("KEDA asks the schedulers how many workers %s should have, as they answer", async (slug) => {
    const { spec } = named("ScaledObject", deploymentOf(slug));
    expect(spec.scaleTargetRef.name).toBe(deploymentOf(slug));
    expect(spec["fallback"]).toBeUndefined(); // on an error nothing changes
    const [trigger] = spec["triggers"] as [{ type: string; metadata: Labels; authenticationRef: { name: string } }];
    const { url = "", valueLocation = "", targetValue, authMode } = trigger.metadata;
    expect([trigger.type, targetValue, authMode]).toEqual(["metrics-api", "1", "bearer"]);

    const { hostname, port, pathname } = new URL(url);
    const service = named("Service", hostname.split(".")[0] ?? "");
    expect(hostname).toBe(`${service.metadata.name}.${NAMESPACE}.svc`);
    expect((service.spec["ports"] as { port: number }[]).map(({ port }) => port)).toContain(Number(port));
    const endpoint = createScalingEndpoint({
      db: { query: async () => [{ workers: 3, age_s: 0.4 }] } as unknown as Sql, // its one query
      models,
      token: "the-token-of-keda",
      log: silentLog,
    });
    const authorization = "Bearer the-token-of-keda";
    const answer = await endpoint({ method: "GET", path: pathname, authorization, fromLoopback: false });
    expect(answer).toMatchObject({ status: 200, body: { [valueLocation]: 3 } });

    const env = containerOf(named("Deployment", "dream-scheduler")).env ?? [];
    const valueOf = (name: string): string | undefined => env.find((each) => each.name === name)?.value;
    const limits = [spec["maxReplicaCount"], spec["minReplicaCount"]].map(String);
    expect([valueOf("FLEET"), valueOf("WORKERS"), valueOf("WORKERS_MIN")]).toEqual(["kubernetes", ...limits]);
    const token = env.find(({ name }) => name === "SCALING_TOKEN")?.valueFrom?.secretKeyRef;
    const authentication = named("TriggerAuthentication", trigger.authenticationRef.name);
    expect(authentication.spec["secretTargetRef"]).toEqual([{ parameter: "token", ...token }]);
  });

  test.each(models)("the workers of %s are found by the driver, and have longer than a rollout to end", (slug) => {
    const workers = named("Deployment", deploymentOf(slug));
    const { metadata, spec } = podOf(workers);
    expect(metadata.labels).toEqual({ ...POOL_LABELS, [MODEL_LABEL]: slug });
    expect(workers.spec.selector.matchLabels).toEqual(metadata.labels);
    expect(containerOf(workers).args).toEqual(["worker", "--model", slug]);
    const { drainMs } = readWorkerSettings({ ...environmentOf(workers), MODEL: slug });
    expect(drainMs).toBeGreaterThanOrEqual(ASYNC_RUN_MAX_MS);
    // What stops after the drain has 10 s for each of its parts (platform/lifecycle.ts).
    expect((spec.terminationGracePeriodSeconds ?? 0) * 1000).toBeGreaterThanOrEqual(drainMs + 40_000);
  });
});

test("the secrets of cpu-dev are those that its script makes, new ones each time", () => {
  const script = join(FOLDER, "overlays/cpu-dev/make-secrets.sh");
  const make = (): Map<string, Labels> => {
    const secrets = parse(execFileSync("sh", [script], { encoding: "utf8" })).filter(({ kind }) => kind === "Secret");
    return new Map(secrets.map(({ metadata, stringData }) => [metadata.name, stringData as Labels]));
  };
  const made = make();
  const refs = readOverlay("cpu-dev").workloads.flatMap(secretRefsOf);
  for (const { name, key } of refs.filter(({ optional }) => optional !== true)) {
    expect(made.get(name)?.[key], `${name}/${key}`).toMatch(/\S{16,}/);
  }
  const used = new Set(refs.map(({ name, key }) => `${name}/${key}`));
  const unused = [...made]
    .flatMap(([name, values]) => Object.keys(values).map((key) => `${name}/${key}`))
    .filter((one) => !used.has(one));
  expect(unused).toEqual([]);
  for (const part of PARTS) {
    const password = made.get("dream-setup")?.[`${part.toUpperCase()}_DB_PASSWORD`];
    const url = `postgres://dream_${part}:${password}@dream-postgres:5432/dream`;
    expect(made.get(`dream-${part}`)?.["DATABASE_URL"]).toBe(url);
  }
  const again = make();
  const kept = [...made].flatMap(([name, values]) =>
    Object.entries(values).filter(([key, value]) => again.get(name)?.[key] === value),
  );
  expect(kept.map(([key]) => key).filter((key) => key !== "AWS_ACCESS_KEY_ID")).toEqual([]);
});

test("docs/deployment.md lists every secret of a production", () => {
  const rows = read("docs/deployment.md")
    .split("\n")
    .filter((line) => line.startsWith("| `dream-"));
  for (const { name, key } of readOverlay("gpu-production").workloads.flatMap(secretRefsOf)) {
    expect(
      rows.find((line) => line.startsWith(`| \`${name}\``)),
      `${name} ${key}`,
    ).toContain(`\`${key}\``);
  }
});

test("every pool's folder is of a model that there is", () => {
  expect(readdirSync(join(FOLDER, "pools"))).toEqual(models);
});
