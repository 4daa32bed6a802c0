/** Who may speak to whom in the cluster: exactly those that have to. */
import { describe, expect, test } from "vitest";

import { PARTS } from "#platform/roles.ts";
import { POOL_LABELS } from "#scheduler/scaling/fleet/kubernetes-pods.ts";

import { overlays, podOf, readOverlay } from "./kubernetes-manifests.ts";
import { type End, mayReach, type NetworkPolicy, type Port, selects } from "./network-policies.ts";

const EVERYBODY = [...PARTS, "worker", "setup"];
const METRICS: Port = { number: 9090, name: "metrics" };
const HTTP: Port = { number: 8080, name: "http" };
const who = (component: string): End => ({ labels: { ...POOL_LABELS, "app.kubernetes.io/component": component } });
const pod = (store: string): End => ({ labels: { "dream-engine/store": store } });

/** In cpu-dev the stores are pods beside ours; elsewhere they are addresses, those of the example. */
const STORES = {
  "cpu-dev": { database: pod("postgres"), queue: pod("redis"), blobs: pod("s3"), blobsPort: 7070 },
  "gpu-production": {
    database: { ip: "10.20.1.7" },
    queue: { ip: "10.20.2.7" },
    blobs: { ip: "10.20.3.7" },
    blobsPort: 443,
  },
} as const;

describe.each(overlays)("%s", (overlay) => {
  const { of, workloads } = readOverlay(overlay);
  const policies = of("NetworkPolicy") as unknown as NetworkPolicy[]; // as the API server has checked them
  const stores = STORES[overlay as keyof typeof STORES]; // an overlay without stores fails every case

  const cases: [what: string, to: End, port: Port, reachedBy: string[]][] = [
    [
      "the database",
      stores.database,
      { number: 5432 },
      ["gateway", "notifier", "runner", "scheduler", "settlement", "setup"],
    ],
    [
      "the queue",
      stores.queue,
      { number: 6379 },
      ["gateway", "notifier", "runner", "scheduler", "settlement", "worker"],
    ],
    [
      "the blob store",
      stores.blobs,
      { number: stores.blobsPort },
      ["gateway", "notifier", "runner", "scheduler", "worker"],
    ],
    ["the API server", { ip: "10.20.0.2" }, { number: 443 }, ["scheduler"]],
    ["a customer's server", { ip: "93.184.216.34" }, { number: 80 }, ["notifier", "runner"]],
    ["the machine's metadata", { ip: "169.254.169.254" }, { number: 80 }, []],
    ["another database", { ip: "10.20.9.9" }, { number: 5432 }, []],
    ["a worker", who("worker"), METRICS, ["scheduler"]],
    ["a scheduler", who("scheduler"), METRICS, []],
    ["the names", { namespace: "kube-system" }, { number: 53 }, EVERYBODY],
  ];
  test.each(cases)("%s is reached by those who have to, and by nobody else", (_what, to, port, reachedBy) => {
    const reaching = EVERYBODY.filter((component) => mayReach(policies, who(component), to, port));
    expect(reaching.toSorted()).toEqual(reachedBy.toSorted());
  });

  const outside: [what: string, from: End, port: Port, reached: string[]][] = [
    ["a client", { ip: "93.184.216.34" }, HTTP, ["gateway"]],
    ["a client", { ip: "93.184.216.34" }, METRICS, []],
    ["KEDA", { namespace: "keda" }, METRICS, ["scheduler"]],
    ["Prometheus", { namespace: "monitoring" }, METRICS, [...PARTS.filter((part) => part !== "gateway"), "worker"]],
    ["Prometheus", { namespace: "monitoring" }, HTTP, ["gateway"]],
    ["another namespace", { namespace: "default" }, METRICS, []],
  ];
  test.each(outside)("%s (%o, %o) reaches those alone that it has to", (_what, from, port, expected) => {
    const reached = EVERYBODY.filter((component) => mayReach(policies, from, who(component), port));
    expect(reached.toSorted()).toEqual(expected.toSorted());
  });

  test.each(["Ingress", "Egress"] as const)("every pod is under a policy for %s", (type) => {
    const bare = workloads.filter((thing) => {
      const { labels } = podOf(thing).metadata;
      return !policies.some(({ spec }) => spec.policyTypes.includes(type) && selects(spec.podSelector, labels));
    });
    expect(bare).toEqual([]);
  });
});
