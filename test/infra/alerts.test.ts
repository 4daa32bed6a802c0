/** Alerts are only as good as the metrics they name: each must exist in a registry as the processes make them. */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

import { beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";

import { type KnownMetrics, metricsIn, readKnownMetrics, strangeLabelsIn } from "./known-metrics.ts";

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

let known: KnownMetrics;
beforeAll(async () => {
  known = await readKnownMetrics();
});

describe.each(rules.map((rule) => [rule.alert, rule] as const))("%s", (_name, rule) => {
  test("names metrics that our processes have, by labels that these have", () => {
    const named = metricsIn(rule.expr);
    expect(named.length).toBeGreaterThan(0);
    expect(named.filter((metric) => !known.has(metric))).toEqual([]);
    expect(strangeLabelsIn(rule.expr, known)).toEqual([]);
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
  const ours = [...known.keys()].filter((name) => /^dream_(money|ledger)_/.test(name));
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
    for (const config of ["prometheus.yml", "../compose/prometheus.yml"]) {
      await run("promtool", ["check", "config", "--syntax-only", config], options);
    }
    const { stdout } = await run("promtool", ["test", "rules", "alerts.test.yml"], options);
    expect(stdout).toContain("SUCCESS");
  },
  PROMTOOL_TIMEOUT_MS,
);
