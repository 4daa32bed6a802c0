/**
 * Inference workers as pods: a Deployment for each pool, whose replicas KEDA sets to what `GET /scaling/<model>` answers
 * (kubernetes-endpoint.ts). This driver looks at the pods, says that number, and marks who is to go; it deletes nothing.
 *
 * When a pool shrinks, the pods to go are marked by their deletion cost *before* the number falls, because whoever deletes them
 * looks at it just then; and the number never falls below the pods that have work. A marked pod that is given a job in between is
 * replaced by another idle one at the next look, or drains: SIGTERM lets it finish within its termination grace.
 */
import { Compile } from "typebox/compile";

import { WorkerState } from "#contract/pool.ts";
import type { Clock } from "#platform/clock.ts";
import type { Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { askFor } from "#pools/asked.ts";

import { chooseDrains } from "../drain.ts";
import type { FleetDriver, PoolWorkers, ReadyWorker } from "./fleet.ts";
import type { KubernetesApi } from "./kubernetes-api.ts";
import {
  type AskedSince,
  COST_ANNOTATION,
  COST_TO_GO,
  Deployment,
  deploymentOf,
  MODEL_LABEL,
  Pod,
  POOL_LABELS,
  type PodView,
  troubleOf,
  viewOf,
} from "./kubernetes-pods.ts";

/** Of one pod, for its /state. One that does not answer in time is busy with something else. */
const STATE_TIMEOUT_MS = 1_000;

/** What became ready while this process did not look for so long, another leader has counted. */
const LOOK_GAP_MS = 15_000;

const workerState = Compile(WorkerState);

export interface KubernetesFleetOptions {
  readonly api: KubernetesApi;
  readonly namespace: string;
  /** Each has its Deployment. */
  readonly models: readonly string[];
  /** Where the number is kept that the endpoint answers. */
  readonly db: Sql;
  readonly clock: Clock;
  readonly log: Log;
}

/** What is remembered of a pool between two looks. */
interface Seen {
  readonly at_ms: number;
  /** The pods that take jobs. */
  readonly ready: readonly ReadyPod[];
  /** Starts that were reported, or had ended before this process looked. */
  readonly started: ReadonlySet<string>;
}

interface ReadyPod extends ReadyWorker {
  readonly cost: string | null;
}

export function createKubernetesFleet(options: KubernetesFleetOptions): FleetDriver {
  const { api, namespace, models, db, clock, log } = options;
  const seen = new Map<string, Seen>();
  const asked = new Map<string, AskedSince>();
  let latestEpoch = 0n;
  const pathOf = ({ name }: ReadyPod): string => `/api/v1/namespaces/${namespace}/pods/${name}`;

  function requireKnown(model: string): void {
    if (!models.includes(model)) throw new Error(`no pool of ${model}; expected one of ${models.join(", ")}`);
  }

  async function observe(model: string): Promise<PoolWorkers> {
    requireKnown(model);
    const [pods, deployment] = await Promise.all([
      api.list(`/api/v1/namespaces/${namespace}/pods`, { ...POOL_LABELS, [MODEL_LABEL]: model }, Pod),
      api.get(`/apis/apps/v1/namespaces/${namespace}/deployments/${deploymentOf(model)}`, Deployment),
    ]);
    const nowMs = clock.now();
    const views = pods.map((pod) => viewOf(pod, nowMs)).filter(({ state }) => state !== "gone");
    const answers = await Promise.all(views.map(askPod));

    const ready: ReadyPod[] = [];
    let draining = 0;
    for (const [index, view] of views.entries()) {
      const answer = answers[index] ?? null;
      if (view.state === "draining" || answer?.state === "draining") draining += 1;
      else if (view.state === "ready") ready.push(readyPod(view, answer, nowMs));
    }
    const before = seen.get(model);
    const isReady = views.filter(({ state }) => state === "ready");
    const looked = before !== undefined && nowMs - before.at_ms <= LOOK_GAP_MS;
    const fresh = looked ? isReady.filter(({ start }) => !before.started.has(start)) : [];
    seen.set(model, { at_ms: nowMs, ready, started: new Set(isReady.map(({ start }) => start)) });
    return {
      ready: ready.map(({ cost: _cost, ...worker }) => worker),
      starting: views.flatMap(({ state, name, since_ms }) => (state === "starting" ? [{ name, since_ms }] : [])),
      draining,
      crash_loop: troubleOf(model, deployment, views, looked ? (asked.get(model) ?? null) : null, nowMs),
      starts_s: fresh.flatMap(({ start_s }) => start_s ?? []),
    };
  }

  /** Null: it does not say, or is not to be asked. */
  async function askPod({ name, state, url }: PodView): Promise<WorkerState | null> {
    if (url === null || state !== "ready") return null;
    try {
      const response = await fetch(`${url}/state`, { signal: AbortSignal.timeout(STATE_TIMEOUT_MS) });
      const answer: unknown = await response.json();
      if (response.ok && workerState.Check(answer)) return answer;
      log.warn({ pod: name, status: response.status }, "a worker's /state is not as expected; it counts as busy");
    } catch (error) {
      log.warn({ err: error, pod: name }, "a worker does not answer for its state; it counts as busy");
    }
    return null;
  }

  async function scale(model: string, desired: number, epoch: bigint): Promise<void> {
    requireKnown(model);
    if (epoch < latestEpoch) return;
    // What this process asked for in an earlier term, another one has changed since.
    if (epoch > latestEpoch) asked.clear();
    latestEpoch = epoch;
    if (!seen.has(model)) await observe(model);
    const ready = seen.get(model)?.ready ?? [];
    const toGo = new Set(chooseDrains(ready, ready.length - desired));
    // Those that start go before any that is ready, whatever their cost; of these, never one more than is marked.
    const workers = Math.max(desired, ready.length - toGo.size);
    if (toGo.size === 0) {
      await ask(model, workers, epoch);
      await mark(model, ready, toGo);
      return;
    }
    try {
      await mark(model, ready, toGo);
    } catch (error) {
      // Nobody goes by chance: the pool keeps what is ready until the marks are right.
      await ask(model, ready.length, epoch);
      throw error;
    }
    await ask(model, workers, epoch);
  }

  async function ask(model: string, workers: number, epoch: bigint): Promise<void> {
    if (!(await askFor(db, epoch, model, workers))) return;
    if (asked.get(model)?.workers !== workers) asked.set(model, { workers, since_ms: clock.now() });
  }

  /** A patch wakes everybody who watches the pod, so only what differs is sent. */
  async function mark(model: string, ready: readonly ReadyPod[], toGo: ReadonlySet<string>): Promise<void> {
    const results = await Promise.allSettled(
      ready.map(async (pod) => {
        const cost = toGo.has(pod.name) ? COST_TO_GO : null;
        if (pod.cost !== cost) await api.patch(pathOf(pod), { metadata: { annotations: { [COST_ANNOTATION]: cost } } });
        return { ...pod, cost };
      }),
    );
    // So that a call before the next look does not patch again.
    const pool = seen.get(model);
    const now = ready.map((pod, index) => (results[index]?.status === "fulfilled" ? results[index].value : pod));
    if (pool !== undefined) seen.set(model, { ...pool, ready: now });
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw new Error(`could not mark which workers of ${model} are to go`, { cause: failed.reason });
  }

  return { observe, scale, stop: () => api.stop() };
}

/** One that does not say what it has is left in peace. */
function readyPod({ name, cost }: PodView, answer: WorkerState | null, nowMs: number): ReadyPod {
  if (answer === null) return { name, cost, jobs: 1, idle_since_ms: nowMs, busy_ms: null };
  const { jobs, idle_since_ms, busy_ms } = answer;
  return { name, cost, jobs, idle_since_ms: idle_since_ms ?? nowMs, busy_ms: busy_ms ?? null };
}
