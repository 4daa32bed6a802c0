/** What our processes show on /metrics, from registries as they make them: every name, and the labels that it has. */
import { Registry } from "prom-client";

import { openRateLimiter } from "#gateway/rate-limiter-open.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry } from "#platform/metrics.ts";
import { createEconomicsMetrics } from "#scheduler/economics-watch.ts";
import { createSchedulerMetrics } from "#scheduler/metrics.ts";
import { createPoolMetrics } from "#scheduler/scaling/metrics.ts";
import { startTestGateway } from "#test/gateway/support/test-gateway.ts";
import { silentLog } from "#test/support/postgres.ts";
import { createCounters } from "#workers/inference/engine/counters.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";
import { createNotifierMetrics } from "#workers/notifier/metrics.ts";
import { createRunnerMetrics } from "#workers/runner/metrics.ts";

export type KnownMetrics = ReadonlyMap<string, readonly string[]>;

/** Of the scrape: which process it was. `role` is ours (platform/metrics.ts). */
const EVERYWHERE = ["job", "instance", "role"];
/** Prometheus's own. */
const PROMETHEUS: KnownMetrics = new Map([
  ["up", ["job", "instance"]],
  ["ALERTS", ["alertname", "alertstate", "severity"]],
]);

export async function readKnownMetrics(): Promise<KnownMetrics> {
  const gatewayRegistry = new Registry();
  const gateway = await startTestGateway({ registry: gatewayRegistry });
  await gateway.stop();
  await openRateLimiter({
    redis_url: undefined,
    sharedDb: null,
    clock: systemClock,
    log: silentLog,
    registry: gatewayRegistry,
  });
  const scheduler = createRegistry("scheduler");
  createSchedulerMetrics(scheduler);
  createEconomicsMetrics(scheduler);
  createPoolMetrics(scheduler);
  const notifier = new Registry();
  createNotifierMetrics(notifier);
  const runner = new Registry();
  createRunnerMetrics(runner);
  const worker = new Registry();
  createWorkerMetrics(worker, "pusht-small", { stats: createCounters(), samplesMax: 8 });

  const known = new Map(PROMETHEUS);
  for (const registry of [gatewayRegistry, scheduler, notifier, runner, worker]) {
    for (const { name, type } of await registry.getMetricsAsJSON()) {
      const labels = [...labelsOf(registry, name), ...EVERYWHERE];
      known.set(name, labels);
      // prom-client counts an enum here: histograms have these as well.
      if (String(type) !== "histogram") continue;
      for (const end of ["_bucket", "_count", "_sum"])
        known.set(name + end, end === "_bucket" ? [...labels, "le"] : labels);
    }
  }
  return known;
}

/** Each metric of prom-client keeps them, though its types do not say so. */
function labelsOf(registry: Registry, name: string): readonly string[] {
  const { labelNames = [] } = registry.getSingleMetric(name) as { labelNames?: readonly string[] };
  return labelNames;
}

/** PromQL's own words, those that our expressions use. */
const WORDS =
  /^(max|min|sum|rate|increase|time|and|or|unless|vector|count|absent|by|on|group|last_over_time|histogram_quantile|bool)$/;

/** What is left of an expression without strings, durations, label lists and PromQL's own words. */
export function metricsIn(expression: string): string[] {
  const bare = expression
    .replaceAll(/\{[^}]*\}/g, " ")
    .replaceAll(/\[[^\]]*\]|offset \w+/g, " ")
    .replaceAll(/\b(by|on)\s*\([^)]*\)/g, " ");
  return [...bare.matchAll(/(?<![\w.])[a-z_:][a-z0-9_:]*/gi)].map(([word]) => word).filter((word) => !WORDS.test(word));
}

/** Labels that an expression selects or groups by and that no metric in it has. */
export function strangeLabelsIn(expression: string, known: KnownMetrics): string[] {
  const strange: string[] = [];
  for (const [, metric = "", selectors = ""] of expression.matchAll(/([a-z_:][a-z0-9_:]*)\{([^}]*)\}/gi)) {
    for (const [, label = ""] of selectors.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)) {
      if (known.get(metric)?.includes(label) !== true) strange.push(`${metric}{${label}}`);
    }
  }
  const all = new Set(metricsIn(expression).flatMap((metric) => known.get(metric) ?? []));
  for (const [, list = ""] of expression.matchAll(/\b(?:by|on)\s*\(([^)]*)\)/g)) {
    for (const label of list.split(",").map((name) => name.trim())) {
      if (!all.has(label)) strange.push(`by (${label})`);
    }
  }
  return strange;
}
