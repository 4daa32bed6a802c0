/** What the objects of Kubernetes say about a pool's workers. Pure: of the objects and the time. */
import { type Static, Type } from "typebox";

/** On every object of a worker pool, beside the model's. infra/k8s has the same. */
export const POOL_LABELS = { "app.kubernetes.io/name": "dream-engine", "app.kubernetes.io/component": "worker" };
export const MODEL_LABEL = "dream-engine/model";
export const deploymentOf = (model: string): string => `dream-worker-${model}`;
/** The container's port that has /state. */
const STATE_PORT = "metrics";
/** kubernetes.io/docs/reference/labels-annotations-taints: of pods that are ready, a ReplicaSet deletes those of the lowest cost first; without it a pod's cost is 0. */
export const COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost";
/** A pod that is to go. All others have none, so those that never were looked at are dearer, too. */
export const COST_TO_GO = "-1";

/** A node is made for it within so long, or there is none to be had. */
const UNSCHEDULABLE_MS = 180_000;
/** As the local fleet has it; the startup probe in infra/k8s ends a worker that takes as long. */
const READY_TIMEOUT_MS = 300_000;
/** From this many restarts on it is no accident. */
const CRASH_LOOP_RESTARTS = 3;
/** Reasons of a container that waits and that waiting does not cure. */
const STUCK = new Set([
  "CrashLoopBackOff",
  "ImagePullBackOff",
  "ErrImagePull",
  "ErrImageNeverPull",
  "InvalidImageName",
  "CreateContainerConfigError",
  "CreateContainerError",
  "RunContainerError",
]);
/**
 * Polled every 5 s from zero and every 15 s above (KEDA, the autoscaler); with two more of these no answer of ours was heeded.
 */
const FOLLOWED_WITHIN_MS = 60_000;
/** The autoscaler leaves a pool as it is for less than this part, where the cluster does not know `tolerance`. */
const TOLERANCE = 0.1;

const Condition = Type.Object({
  type: Type.String(),
  status: Type.String(),
  reason: Type.Optional(Type.String()),
  message: Type.Optional(Type.String()),
  lastTransitionTime: Type.Optional(Type.Union([Type.String(), Type.Null()])),
});

const Terminated = Type.Object({
  exitCode: Type.Integer(),
  reason: Type.Optional(Type.String()),
  finishedAt: Type.Optional(Type.Union([Type.String(), Type.Null()])),
});

const ContainerStatus = Type.Object({
  restartCount: Type.Integer(),
  state: Type.Optional(
    Type.Object({
      waiting: Type.Optional(
        Type.Object({ reason: Type.Optional(Type.String()), message: Type.Optional(Type.String()) }),
      ),
      running: Type.Optional(Type.Object({ startedAt: Type.Optional(Type.Union([Type.String(), Type.Null()])) })),
      terminated: Type.Optional(Terminated),
    }),
  ),
  lastState: Type.Optional(Type.Object({ terminated: Type.Optional(Terminated) })),
});

export const Pod = Type.Object({
  metadata: Type.Object({
    name: Type.String(),
    creationTimestamp: Type.String(),
    deletionTimestamp: Type.Optional(Type.String()),
    annotations: Type.Optional(Type.Record(Type.String(), Type.String())),
  }),
  spec: Type.Object({
    containers: Type.Array(
      Type.Object({
        ports: Type.Optional(
          Type.Array(Type.Object({ name: Type.Optional(Type.String()), containerPort: Type.Integer() })),
        ),
      }),
    ),
  }),
  status: Type.Object({
    phase: Type.Optional(Type.String()),
    podIP: Type.Optional(Type.String()),
    conditions: Type.Optional(Type.Array(Condition)),
    containerStatuses: Type.Optional(Type.Array(ContainerStatus)),
  }),
});
type Pod = Static<typeof Pod>;

export const Deployment = Type.Object({
  spec: Type.Object({ replicas: Type.Optional(Type.Integer()) }),
  status: Type.Optional(Type.Object({ conditions: Type.Optional(Type.Array(Condition)) })),
});
type Deployment = Static<typeof Deployment>;

export interface PodView {
  readonly name: string;
  /** gone: it ended and will not run again. */
  readonly state: "starting" | "ready" | "draining" | "gone";
  /** Epoch ms of the beginning of its start, or of the latest one. */
  readonly since_ms: number;
  /** Names that start. */
  readonly start: string;
  /** Seconds it took until it was ready; null: it is not. */
  readonly start_s: number | null;
  /** Base of its /state; null: it has no address yet. */
  readonly url: string | null;
  /** Its deletion cost as it stands on it. */
  readonly cost: string | null;
  /** Why it does not become ready; null: it may still. */
  readonly problem: string | null;
}

export function viewOf(pod: Pod, nowMs: number): PodView {
  const { metadata, status } = pod;
  const created = Date.parse(metadata.creationTimestamp);
  const ready = (status.conditions ?? []).find(({ type }) => type === "Ready");
  const state = stateOf(pod, ready?.status === "True");
  const since_ms = Math.max(created, ...(status.containerStatuses ?? []).map(restartedAt));
  const readyAt = Date.parse(ready?.lastTransitionTime ?? "");
  return {
    name: metadata.name,
    state,
    since_ms,
    start: `${metadata.name}#${restartsOf(pod)}`,
    start_s: state === "ready" && readyAt >= since_ms ? (readyAt - since_ms) / 1000 : null,
    url: urlOf(pod),
    cost: metadata.annotations?.[COST_ANNOTATION] ?? null,
    problem: state === "starting" ? problemOf(pod, nowMs - since_ms) : null,
  };
}

function stateOf({ metadata, status }: Pod, ready: boolean): PodView["state"] {
  // An evicted pod, or one of a node that went, stays as a record; its ReplicaSet has made another.
  if (status.phase === "Failed" || status.phase === "Succeeded") return "gone";
  if (metadata.deletionTimestamp !== undefined) return "draining";
  return ready ? "ready" : "starting";
}

const restartsOf = ({ status }: Pod): number =>
  Math.max(0, ...(status.containerStatuses ?? []).map(({ restartCount }) => restartCount));

/** Epoch ms; 0: it was not. Of one that was, neither a node nor an image has to be waited for. */
function restartedAt({ restartCount, state, lastState }: Static<typeof ContainerStatus>): number {
  if (restartCount === 0) return 0;
  return Date.parse(state?.running?.startedAt ?? lastState?.terminated?.finishedAt ?? "") || 0;
}

function urlOf({ spec, status }: Pod): string | null {
  const port = spec.containers.flatMap(({ ports = [] }) => ports).find(({ name }) => name === STATE_PORT);
  if (status.podIP === undefined || port === undefined) return null;
  return `http://${status.podIP.includes(":") ? `[${status.podIP}]` : status.podIP}:${port.containerPort}`;
}

function problemOf(pod: Pod, sinceMs: number): string | null {
  const restarts = restartsOf(pod);
  for (const { state, lastState } of pod.status.containerStatuses ?? []) {
    const reason = state?.waiting?.reason;
    const end = state?.terminated ?? lastState?.terminated;
    const last = end === undefined ? "" : `, last end: ${end.reason ?? "?"}, exit code ${end.exitCode}`;
    if (reason === "CrashLoopBackOff") return `CrashLoopBackOff, ${restarts} restarts${last}`;
    if (reason !== undefined && STUCK.has(reason)) return textOf(reason, state?.waiting?.message);
    if (restarts >= CRASH_LOOP_RESTARTS) return `${restarts} restarts${last}`;
  }
  const scheduled = pod.status.conditions?.find(({ type }) => type === "PodScheduled");
  if (scheduled?.status === "False" && scheduled.reason === "Unschedulable") {
    return sinceMs < UNSCHEDULABLE_MS ? null : textOf("Unschedulable", scheduled.message);
  }
  return sinceMs < READY_TIMEOUT_MS ? null : `not ready after ${READY_TIMEOUT_MS / 1000} s`;
}

/** Messages of Kubernetes may be long: they name every node. */
const textOf = (reason: string, message = ""): string =>
  message === "" ? reason : `${reason}: ${message.slice(0, 300)}`;

export interface AskedSince {
  readonly workers: number;
  readonly since_ms: number;
}

/** Why the pool is not what it should be, in one sentence; null: nothing is wrong. */
export function troubleOf(
  model: string,
  deployment: Deployment | null,
  pods: readonly PodView[],
  asked: AskedSince | null,
  nowMs: number,
): string | null {
  const name = deploymentOf(model);
  if (deployment === null) return `there is no Deployment ${name}`;
  const failing = pods.filter(({ problem }) => problem !== null);
  const [first] = failing;
  if (first !== undefined) {
    return `${failing.length} of ${pods.length} pods of ${name} do not get ready; ${first.name}: ${first.problem}`;
  }
  const failure = deployment.status?.conditions?.find(
    ({ type, status }) => type === "ReplicaFailure" && status === "True",
  );
  if (failure !== undefined) return `${name} cannot make pods: ${textOf(failure.reason ?? "", failure.message)}`;
  const replicas = deployment.spec.replicas ?? 1;
  if (asked === null || nowMs - asked.since_ms < FOLLOWED_WITHIN_MS || isClose(replicas, asked.workers)) return null;
  return (
    `${name} has ${replicas} replicas, and ${asked.workers} are asked for since ` +
    `${Math.floor((nowMs - asked.since_ms) / 1000)} s: see \`kubectl describe scaledobject ${name}\``
  );
}

/** Nobody may take the last one, or leave out the first. */
const isClose = (replicas: number, asked: number): boolean =>
  replicas === asked || (replicas > 0 && asked > 0 && Math.abs(asked / replicas - 1) <= TOLERANCE);
