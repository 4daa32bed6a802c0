/** How PostgreSQL goes about a query: which indexes it takes, and how many rows it reads for the answer. */
import { expect } from "vitest";

import type { Database, Sql } from "#platform/database.ts";

export interface PlanNode {
  readonly "Node Type": string;
  readonly "Index Name"?: string;
  readonly "Relation Name"?: string;
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Rows Removed by Filter"?: number;
  readonly Plans?: readonly PlanNode[];
}

/** Every node of the plans of all that `run` asks for. */
export async function plansOn(db: Database, run: (sql: Sql) => Promise<unknown>): Promise<PlanNode[]> {
  const nodes: PlanNode[] = [];
  const walk = (node: PlanNode): void => {
    nodes.push(node);
    for (const child of node.Plans ?? []) walk(child);
  };
  await run({
    async query<Row>(text: string, params?: readonly unknown[]) {
      const [row] = await db.query<{ "QUERY PLAN": readonly { Plan: PlanNode }[] }>(
        `EXPLAIN (ANALYZE, FORMAT JSON) ${text}`,
        params,
      );
      for (const { Plan } of row?.["QUERY PLAN"] ?? []) walk(Plan);
      return db.query<Row>(text, params);
    },
  });
  return nodes;
}

/** Rows of `rollouts` that were read, those thrown away included. */
export const rowsRead = (nodes: readonly PlanNode[]): number =>
  nodes
    .filter((node) => node["Relation Name"] === "rollouts")
    .reduce(
      (sum, node) => sum + (node["Actual Rows"] + (node["Rows Removed by Filter"] ?? 0)) * node["Actual Loops"],
      0,
    );

export const indexesOf = (nodes: readonly PlanNode[]): string[] => [
  ...new Set(nodes.flatMap((node) => node["Index Name"] ?? [])),
];

export function expectNoScans(nodes: readonly PlanNode[]): void {
  expect(nodes.length).toBeGreaterThan(0);
  expect(nodes.map((node) => node["Node Type"])).not.toContain("Seq Scan");
  expect(nodes.map((node) => node["Node Type"])).not.toContain("Sort");
}
