/**
 * As much of a Kubernetes cluster as our driver can tell from one: pods that start, crash and end as told, and the controllers
 * of Deployments, which pick whom to delete as the real ones do (kubernetes/pkg/controller/controller_utils.go,
 * ActivePodsWithRanks, and the ready time of each). Each pod is a little HTTP server that answers `/state` as a worker does.
 */
import { randomBytes } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";

export interface PodTemplate {
  readonly labels: Readonly<Record<string, string>>;
  /** From its creation to ready. */
  readonly startMs: number;
  readonly terminationGraceMs: number;
  /** "waits": until `becomeReady`. */
  readonly fate: "starts" | "waits" | "crashes" | "never ready" | "unschedulable" | "no image";
}

export interface Deployment {
  readonly name: string;
  replicas: number;
  template: PodTemplate;
  /** A quota that forbids more pods. */
  podsMax: number;
}

export interface FakePod {
  readonly name: string;
  readonly owner: string;
  readonly template: PodTemplate;
  readonly createdMs: number;
  readonly annotations: Map<string, string>;
  version: number;
  phase: "Pending" | "Running" | "Failed";
  readyMs: number | null;
  deletedMs: number | null;
  restarts: number;
  lastDeathMs: number | null;
  /** Of its container, the latest time. */
  startedMs: number | null;
  jobs: number;
  idleSinceMs: number;
  /** Answers /state; false: hangs. */
  answers: boolean;
  port: number;
}

export interface Cluster {
  readonly deployments: Map<string, Deployment>;
  readonly pods: Map<string, FakePod>;
  /** Pods that were killed while they had jobs. */
  readonly killedWithJobs: string[];
  /** Counts every change, as the server's own does. */
  version(): number;
  deploy(name: string, template: Partial<PodTemplate>, replicas?: number): Deployment;
  scale(name: string, replicas: number): void;
  podsOf(name: string): FakePod[];
  /** Nothing, of a pod that waits for something else. */
  becomeReady(pod: string): void;
  setJobs(pod: string, count: number): void;
  /** Its container ends and is started again by its node. */
  crash(pod: string): void;
  /** Its node is gone, or short of memory: it stays as a record, and another is made. */
  evict(pod: string): void;
  patch(pod: string, annotations: Readonly<Record<string, string | null>>): void;
  stop(): Promise<void>;
}

const COST = "controller.kubernetes.io/pod-deletion-cost";

export function createCluster({ now = Date.now }: { readonly now?: () => number } = {}): Cluster {
  const deployments = new Map<string, Deployment>();
  const pods = new Map<string, FakePod>();
  const servers = new Map<string, Server>();
  const timers = new Set<NodeJS.Timeout>();
  const killedWithJobs: string[] = [];
  let version = 1000;

  const later = (ms: number, run: () => void): NodeJS.Timeout => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      run();
    }, ms);
    timers.add(timer);
    return timer;
  };
  const touch = (pod: FakePod): void => void (pod.version = ++version);
  const podsOf = (name: string): FakePod[] => [...pods.values()].filter(({ owner }) => owner === name);
  const known = (name: string): FakePod => {
    const pod = pods.get(name);
    if (!pod) throw new Error(`no pod ${name}; there are ${[...pods.keys()].join(", ")}`);
    return pod;
  };

  function create(owner: string, template: PodTemplate): void {
    const pod: FakePod = {
      name: `${owner}-7d4b9c6f5-${randomBytes(3).toString("hex").slice(0, 5)}`,
      owner,
      template,
      createdMs: now(),
      annotations: new Map(),
      version: ++version,
      phase: "Pending",
      readyMs: null,
      deletedMs: null,
      restarts: 0,
      lastDeathMs: null,
      startedMs: null,
      jobs: 0,
      idleSinceMs: now(),
      answers: true,
      port: 0,
    };
    pods.set(pod.name, pod);
    const server = createServer((_request, response) => {
      if (!pod.answers) return; // hangs
      const state = pod.deletedMs === null ? "ready" : "draining";
      const idle_since_ms = pod.jobs > 0 ? null : pod.idleSinceMs;
      response.end(JSON.stringify({ state, model: "any", jobs: pod.jobs, idle_since_ms }));
    });
    servers.set(pod.name, server);
    server.listen(0, "127.0.0.1", () => {
      pod.port = (server.address() as AddressInfo).port; // a server that listens on TCP has one
      start(pod);
    });
  }

  function start(pod: FakePod): void {
    const { fate, startMs } = pod.template;
    if (fate === "unschedulable" || fate === "no image") return;
    later(startMs, () => {
      if (pod.deletedMs !== null || !pods.has(pod.name)) return;
      pod.phase = "Running";
      pod.startedMs ??= now();
      touch(pod);
      if (fate === "crashes") return die(pod);
      if (fate === "starts") becomeReady(pod);
    });
  }

  function becomeReady(pod: FakePod): void {
    if (pod.phase !== "Running" || pod.deletedMs !== null || pod.readyMs !== null) return;
    pod.startedMs ??= now();
    pod.readyMs = now();
    pod.idleSinceMs = now();
    touch(pod);
  }

  function die(pod: FakePod): void {
    pod.readyMs = null;
    pod.jobs = 0;
    pod.restarts += 1;
    pod.lastDeathMs = now();
    pod.startedMs = null;
    touch(pod);
    // The back-off of the real one is 10 s and doubles; here the next start comes as late as a start takes.
    start(pod);
  }

  function remove(pod: FakePod): void {
    if (!pods.delete(pod.name)) return;
    if (pod.jobs > 0) killedWithJobs.push(pod.name);
    version += 1;
    const server = servers.get(pod.name);
    servers.delete(pod.name);
    server?.close();
    server?.closeAllConnections();
  }

  /** SIGTERM: a worker takes no more, finishes what it has and ends; after its grace it is killed. */
  function terminate(pod: FakePod): void {
    pod.deletedMs = now();
    touch(pod);
    if (pod.jobs === 0) later(20, () => remove(pod));
    else later(pod.template.terminationGraceMs, () => remove(pod));
  }

  function reconcile({ name, replicas, template, podsMax }: Deployment): void {
    const active = podsOf(name).filter(({ deletedMs, phase }) => deletedMs === null && phase !== "Failed");
    for (let count = active.length; count < Math.min(replicas, podsMax); count++) create(name, template);
    for (const pod of active.toSorted(firstToGo).slice(0, Math.max(0, active.length - replicas))) terminate(pod);
  }

  return {
    deployments,
    pods,
    killedWithJobs,
    version: () => version,
    podsOf,
    deploy(name, template, replicas = 0) {
      const whole = { labels: {}, startMs: 30, terminationGraceMs: 5_000, fate: "starts" as const, ...template };
      const deployment = { name, replicas, template: whole, podsMax: Number.POSITIVE_INFINITY };
      deployments.set(name, deployment);
      reconcile(deployment);
      return deployment;
    },
    scale(name, replicas) {
      const deployment = deployments.get(name);
      if (!deployment || deployment.replicas === replicas) return;
      deployment.replicas = replicas;
      version += 1;
      reconcile(deployment);
    },
    becomeReady: (name) => becomeReady(known(name)),
    setJobs(name, count) {
      const pod = known(name);
      if (count > pod.jobs && (pod.readyMs === null || pod.deletedMs !== null))
        throw new Error(`${name} takes no jobs`);
      pod.jobs = count;
      pod.idleSinceMs = now();
      if (count === 0 && pod.deletedMs !== null) remove(pod);
    },
    crash: (name) => die(known(name)),
    evict(name) {
      const pod = known(name);
      pod.phase = "Failed";
      pod.readyMs = null;
      touch(pod);
      const deployment = deployments.get(pod.owner);
      if (deployment) reconcile(deployment);
    },
    patch(name, annotations) {
      const pod = known(name);
      for (const [key, value] of Object.entries(annotations)) {
        if (value === null) pod.annotations.delete(key);
        else pod.annotations.set(key, value);
      }
      touch(pod);
    },
    async stop() {
      for (const timer of timers) clearTimeout(timer);
      for (const pod of pods.values()) pod.jobs = 0;
      for (const pod of pods.values()) remove(pod); // a Map bears that
    },
  };
}

/** Of two pods, the one that a ReplicaSet deletes first comes first. */
function firstToGo(a: FakePod, b: FakePod): number {
  const assigned = (pod: FakePod): number => Number(pod.template.fate !== "unschedulable");
  const running = (pod: FakePod): number => Number(pod.phase === "Running");
  const ready = (pod: FakePod): number => Number(pod.readyMs !== null);
  const cost = (pod: FakePod): number => Number(pod.annotations.get(COST) ?? 0);
  return (
    assigned(a) - assigned(b) ||
    running(a) - running(b) ||
    ready(a) - ready(b) ||
    cost(a) - cost(b) ||
    (b.readyMs ?? 0) - (a.readyMs ?? 0) ||
    b.restarts - a.restarts ||
    b.createdMs - a.createdMs
  );
}
