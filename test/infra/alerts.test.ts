/** Alerts are only as good as the metrics they name: each must exist in a registry as the processes make them. */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";

import { createRegistry } from "#platform/metrics.ts";
import { createSchedulerMetrics } from "#scheduler/metrics.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { createNotifierMetrics } from "#workers/notifier/metrics.ts";
import { createRunnerMetrics } from "#workers/runner/metrics.ts";

const run = promisify(execFile);
const FOLDER = "infra/prometheus";

interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly labels: Record<string, string>;
  readonly annotations: Record<string, string>;
}
const { groups } = parse(readFileSync(`${FOLDER}/alerts.yml`, "utf8")) as { groups: { name: string; rules: Rule[] }[] };
const rules = groups.flatMap((group) => group.rules);

/** Metrics that the rules may name: ours, and `up`, which is Prometheus's own. */
const known = new Set(["up"]);
let gateway: TestGateway;
beforeAll(async () => {
  const registry = new Registry();
  gateway = await startTestGateway({ registry });
  const scheduler = createRegistry("scheduler");
  createSchedulerMetrics(scheduler);
  const notifier = createRegistry("notifier");
  createNotifierMetrics(notifier);
  const runner = createRegistry("runner");
  createRunnerMetrics(runner);
  for (const metric of await Promise.all(
    [registry, scheduler, notifier, runner].map((one) => one.getMetricsAsJSON()),
  )) {
    for (const { name, type } of metric) {
      known.add(name);
      // prom-client counts an enum here: histograms and summaries have these as well.
      if (String(type) === "histogram") for (const end of ["_bucket", "_count", "_sum"]) known.add(name + end);
    }
  }
});
afterAll(() => gateway.stop());

/** What is left of an expression without strings, durations, label lists and PromQL's own words. */
function metricsIn(expr: string): string[] {
  const bare = expr.replaceAll(/\{[^}]*\}/g, " ").replaceAll(/\[[^\]]*\]|offset \w+/g, " ");
  return [...bare.matchAll(/[a-z_:][a-z0-9_:]*/gi)]
    .map(([word]) => word)
    .filter((word) => !/^(max|min|sum|rate|increase|time|and|or|unless|vector|count|absent|by|on)$/.test(word));
}

describe.each(rules.map((rule) => [rule.alert, rule] as const))("%s", (_name, rule) => {
  test("names metrics that our processes have", () => {
    const named = metricsIn(rule.expr);
    expect(named.length).toBeGreaterThan(0);
    expect(named.filter((metric) => !known.has(metric))).toEqual([]);
  });

  test("says what happened, how bad it is and what to do", () => {
    expect(rule.annotations["summary"]?.length).toBeGreaterThan(20);
    expect(rule.annotations["runbook"]?.length).toBeGreaterThan(60);
    expect(["page", "ticket"]).toContain(rule.labels["severity"]);
  });

  test("is part of the quiet system that the rules' own tests describe", () => {
    const { tests } = parse(readFileSync(`${FOLDER}/alerts.test.yml`, "utf8")) as {
      tests: { alert_rule_test?: { alertname: string }[] }[];
    };
    expect(tests[0]?.alert_rule_test?.map(({ alertname }) => alertname)).toContain(rule.alert);
  });
});

test("no two alerts share a name", () => {
  expect(new Set(rules.map(({ alert }) => alert)).size).toBe(rules.length);
});

test("every metric of money and ledger is watched by an alert or is one to look at", () => {
  const watched = new Set(rules.flatMap(({ expr }) => metricsIn(expr)));
  const toLookAt = new Set(["dream_money_unsettled_rollouts", "dream_money_oldest_unsettled_debit_age_seconds"]);
  const ours = [...known].filter((name) => /^dream_(money|ledger)_/.test(name));
  expect(ours.filter((name) => !watched.has(name) && !toLookAt.has(name))).toEqual([]);
});

const promtool = await run("promtool", ["--version"]).then(
  () => true,
  () => false, // not installed
);

/** It replays days of samples, a few seconds of CPU; beside other tests it gets a share of one. */
const PROMTOOL_TIMEOUT_MS = 120_000;

test.skipIf(!promtool)(
  "promtool accepts the rules and their tests pass",
  async () => {
    const options = { cwd: FOLDER };
    await run("promtool", ["check", "rules", "alerts.yml"], options);
    await run("promtool", ["check", "config", "--syntax-only", "prometheus.yml"], options);
    const { stdout } = await run("promtool", ["test", "rules", "alerts.test.yml"], options);
    expect(stdout).toContain("SUCCESS");
  },
  PROMTOOL_TIMEOUT_MS,
);
