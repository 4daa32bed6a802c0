/**
 * What KEDA and the autoscaler that it makes do with a `metrics-api` trigger, as their sources have it
 * (keda/pkg/scaling/executor/scale_scaledobjects.go, RequestScale; kubernetes/pkg/controller/podautoscaler/replica_calculator.go,
 * GetExternalPerPodMetricReplicas), with targetValue 1, cooldownPeriod 0 and no fallback.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { Cluster } from "./cluster.ts";

export interface KedaOptions {
  readonly cluster: Cluster;
  readonly deployment: string;
  readonly url: string;
  readonly token: string;
  readonly maxReplicas: number;
  /** Of the ratio; the autoscaler's default is 0.1, and infra/k8s sets 0. */
  readonly tolerance?: number;
}

export interface Keda {
  /** One look of each. What the endpoint said; null: an error. */
  poll(): Promise<number | null>;
  /** Does so again and again, until `stop`. */
  start(everyMs: number): void;
  stop(): Promise<void>;
}

export function createKeda({ cluster, deployment, url, token, maxReplicas, tolerance = 0 }: KedaOptions): Keda {
  async function ask(): Promise<number | null> {
    try {
      const response = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
      if (response.status !== 200) return null;
      const { desired } = (await response.json()) as { desired: unknown };
      return typeof desired === "number" ? desired : null;
    } catch {
      return null;
    }
  }

  async function poll(): Promise<number | null> {
    const value = await ask();
    if (value === null) return null; // both leave the replicas as they are
    const replicas = cluster.deployments.get(deployment)?.replicas ?? 0;
    if (value <= 0) cluster.scale(deployment, 0);
    else if (replicas === 0) cluster.scale(deployment, 1);
    else if (Math.abs(value / replicas - 1) > tolerance) {
      cluster.scale(deployment, Math.min(maxReplicas, Math.max(1, Math.ceil(value))));
    }
    return value;
  }

  const stopped = new AbortController();
  let rounds: Promise<void> = Promise.resolve();
  return {
    poll,
    start(everyMs) {
      rounds = (async () => {
        while (!stopped.signal.aborted) {
          await poll();
          await delay(everyMs);
        }
      })();
    },
    async stop() {
      stopped.abort();
      await rounds;
    },
  };
}
