/** The commands by which docs/datasets.md makes a dataset, run as they stand there, one after the other in one shell. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";

import { actionsFile } from "../gateway/support/npy-writer.ts";
import { framePng } from "../gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "../gateway/support/test-gateway.ts";

const SEPARATOR = "---- end of a block ----";

let t: TestGateway;
let folder: string;
/** What each block printed. */
let printed: readonly string[];

beforeAll(async () => {
  t = await startTestGateway();
  const { url } = await t.listen();
  const key = await t.newKey(mils(10_000));
  folder = await mkdtemp(join(tmpdir(), "dream-docs-"));
  await writeFile(join(folder, "start_frame.png"), await framePng());
  await writeFile(join(folder, "actions.npy"), actionsFile(48, 2));
  const page = await readFile("docs/datasets.md", "utf8");
  const [making = ""] = page.split("\n## The form\n");
  const blocks = [...making.matchAll(/^```sh\n([^`]*)^```$/gm)].map(([, block]) => block ?? "");
  const script = ["set -euo pipefail", ...blocks.flatMap((block) => [block, `echo; echo "${SEPARATOR}"`])].join("\n");
  const { stdout } = await promisify(execFile)("bash", ["-c", script], {
    cwd: folder,
    env: { PATH: process.env["PATH"] ?? "", BASE: url, KEY: key.api_key },
  });
  printed = stdout.split(SEPARATOR);
}, 60_000);
afterAll(async () => {
  await t.stop();
  await rm(folder, { recursive: true, force: true });
});

test("the commands of docs/datasets.md make datasets, as the page says", async () => {
  const [uploaded = "", , made = "", started = "", shown = "", archived = "", ...rest] = printed;
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
