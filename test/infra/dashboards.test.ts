/** Grafana's dashboards: what they ask for is there, everything that we show is asked for, and Prometheus understands it. */
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { beforeAll, describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";

import { type KnownMetrics, metricsIn, readKnownMetrics, strangeLabelsIn } from "./known-metrics.ts";

const run = promisify(execFile);
const FOLDER = "infra/grafana";
/** Of what Grafana puts in before it asks. */
const MODEL_VARIABLE = /=~"\$model"/g;
const INTERVAL_VARIABLE = /\$__rate_interval/g;

interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly datasource?: { readonly uid: string };
  readonly targets?: readonly { readonly refId: string; readonly expr: string; readonly legendFormat: string }[];
}
interface Dashboard {
  readonly uid: string;
  readonly title: string;
  readonly panels: readonly Panel[];
  readonly annotations: { readonly list: readonly { readonly expr: string }[] };
  readonly templating: { readonly list: readonly { readonly name: string; readonly definition: string }[] };
}

const dashboards = readdirSync(`${FOLDER}/dashboards`).map(
  (file) => [file, JSON.parse(readFileSync(`${FOLDER}/dashboards/${file}`, "utf8")) as Dashboard] as const,
);
const queriesOf = ({ panels, annotations, templating }: Dashboard): string[] => [
  ...panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
  ...annotations.list.map(({ expr }) => expr),
  ...templating.list.map(({ definition }) => definition.replace(/^label_values\((\w+), (\w+)\)$/, "sum by ($2) ($1)")),
];
const asPrometheusGets = (query: string): string =>
  query.replaceAll(MODEL_VARIABLE, '=~".*"').replaceAll(INTERVAL_VARIABLE, "1m");

/** Without what a histogram's series end with. */
const base = (name: string): string => name.replace(/_(bucket|count|sum)$/, "");

let known: KnownMetrics;
beforeAll(async () => {
  known = await readKnownMetrics();
});

test("there are two, of names and ids of their own", () => {
  expect(dashboards.map(([file]) => file).toSorted()).toEqual(["engine.json", "operator.json"]);
  expect(new Set(dashboards.map(([, { uid }]) => uid)).size).toBe(dashboards.length);
});

describe.each(dashboards)("%s", (_file, dashboard) => {
  test("asks for metrics that our processes have, by labels that these have", () => {
    for (const query of queriesOf(dashboard)) {
      const named = metricsIn(query);
      expect(
        named.filter((metric) => !known.has(metric)),
        query,
      ).toEqual([]);
      expect(strangeLabelsIn(query, known), query).toEqual([]);
    }
  });

  test("names in its legends what the query leaves to tell series apart", () => {
    for (const { targets = [], title } of dashboard.panels) {
      for (const { expr, legendFormat } of targets) {
        const [, grouped = ""] = /^(?:sum|max|min|histogram_quantile\([\d.]+, sum) by \(([^)]*)\)/.exec(expr) ?? [];
        const labels = grouped.split(",").flatMap((name) => (["", "le"].includes(name.trim()) ? [] : [name.trim()]));
        if (legendFormat === "") continue; // a table shows them all
        for (const label of labels) expect(legendFormat, `${title}: ${expr}`).toContain(`{{${label}}}`);
      }
    }
  });

  test("has panels of the provisioned datasource, each of its own id, and none over another", () => {
    const { datasources } = parse(readFileSync(`${FOLDER}/provisioning/datasources/prometheus.yml`, "utf8")) as {
      datasources: { uid: string }[];
    };
    const { panels } = dashboard;
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    for (const panel of panels) {
      if (panel.type === "row") continue;
      expect(panel.targets?.length, panel.title).toBeGreaterThan(0);
      expect(panel.datasource?.uid).toBe(datasources[0]?.uid);
      expect(panel.gridPos.x + panel.gridPos.w, panel.title).toBeLessThanOrEqual(24);
    }
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, i) => `${x + (i % w)} ${y + Math.floor(i / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
  });
});

test("every metric of ours is on a dashboard or watched by an alert", () => {
  const alerts = readFileSync("infra/prometheus/alerts.yml", "utf8");
  const asked = new Set(dashboards.flatMap(([, dashboard]) => queriesOf(dashboard).flatMap(metricsIn)));
  const ours = [...known.keys()].filter((name) => name.startsWith("dream_"));
  const shown = new Set([...asked].map(base));
  expect(ours.filter((name) => !shown.has(base(name)) && !alerts.includes(name))).toEqual([]);
});

test("the folder of dashboards is where Grafana is told to look", () => {
  const { providers } = parse(readFileSync(`${FOLDER}/provisioning/dashboards/dashboards.yml`, "utf8")) as {
    providers: { options: { path: string } }[];
  };
  const compose = readFileSync("docker-compose.yml", "utf8");
  expect(compose).toContain(`./${FOLDER}/dashboards:${providers[0]?.options.path}:ro`);
  expect(compose).toContain(`./${FOLDER}/provisioning:/etc/grafana/provisioning:ro`);
});

const promtool = await run("promtool", ["--version"]).then(
  () => true,
  () => false, // not installed
);

test.skipIf(!promtool)("promtool accepts every query", async () => {
  const queries = [...new Set(dashboards.flatMap(([, dashboard]) => queriesOf(dashboard)))].map(asPrometheusGets);
  const rules = queries.map((expr, i) => ({ record: `query:${i}`, expr }));
  const folder = mkdtempSync(join(tmpdir(), "dream-dashboards-"));
  try {
    const file = join(folder, "queries.yml");
    writeFileSync(file, stringify({ groups: [{ name: "dashboards", rules }] }));
    const { stdout } = await run("promtool", ["check", "rules", file]);
    expect(stdout).toContain(`${queries.length} rules found`);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
