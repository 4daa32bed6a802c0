/** The commands by which docs/datasets.md makes a dataset, run as they stand there, one after the other in one shell. */
import { readFile } from "node:fs/promises";

import { afterAll, beforeAll, expect, test } from "vitest";

import { framePng } from "#test/gateway/support/requests.ts";

import { type PageShell, runCommandsOf } from "./page-shell.ts";

let shell: PageShell;
beforeAll(async () => {
  const page = await readFile("docs/datasets.md", "utf8");
  const [making = ""] = page.split("\n## The form\n");
  shell = await runCommandsOf(making);
}, 60_000);
afterAll(() => shell.stop());

test("the commands of docs/datasets.md make datasets, as the page says", async () => {
  const [uploaded = "", , made = "", started = "", shown = "", archived = "", ...rest] = shell.printed;
  expect(rest.map((text) => text.trim())).toEqual([""]);
  expect(JSON.parse(uploaded)).toMatchObject({ object: "upload", bytes: (await framePng()).length });
  const { id } = JSON.parse(made);
  expect(JSON.parse(made)).toMatchObject({
    state: "ready",
    name: "evening",
    rows: { pending: 2, invalid: 1 },
    problems: [
      { line: 3, id: "push-2", code: "duplicate_id", message: "id: expected one of its own, got that of line 2" },
    ],
    cost: { estimated_mils: 490, budget_mils: 50_000, charged_mils: 0 },
  });
  expect(JSON.parse(started)).toMatchObject({ id, state: "running" });
  const [dataset = "", rows = ""] = shown.trim().split(/(?<=\})(?=\{"object":"list")/);
  expect(JSON.parse(dataset)).toMatchObject({ id });
  expect(JSON.parse(rows).data.map((row: { id: string; state: string }) => [row.id, row.state])).toEqual([
    ["push-1", "pending"],
    ["push-2", "pending"],
    ["push-2", "invalid"],
  ]);
  expect(JSON.parse(archived)).toMatchObject({ state: "ready", rows: { total: 1, pending: 1, invalid: 0 } });
});
