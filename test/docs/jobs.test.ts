/** The commands of docs/jobs.md, run as they stand there, one after the other in one shell. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";

import { afterAll, beforeAll, expect, test } from "vitest";

import { type PageShell, runCommandsOf } from "./page-shell.ts";

let shell: PageShell;
beforeAll(async () => {
  shell = await runCommandsOf(await readFile("docs/jobs.md", "utf8"));
}, 60_000);
afterAll(() => shell.stop());

test("every command of docs/jobs.md does what the page says", async () => {
  const [submitted = "", , asked = "", waited = "", , listed = "", cancelled = "", ...rest] = shell.printed;
  expect(rest.map((text) => text.trim())).toEqual([""]);
  expect(submitted).toContain("HTTP/1.1 202 Accepted");
  expect(submitted).toMatch(/^location: http:\/\/\S+\/v1\/rollouts\/rollout_[0-9a-f]{32}\r$/im);
  expect(submitted).toMatch(/^retry-after: \d+\r$/im);
  const { id } = JSON.parse(asked);
  expect(submitted).toContain(id);
  expect(JSON.parse(waited)).toMatchObject({ id, status: "succeeded", seed: 7, charged_mils: 245, refunded_mils: 0 });
  expect((await stat(join(shell.folder, "rollout.mp4"))).size).toBeGreaterThan(500);
  expect(JSON.parse(listed)).toMatchObject({ object: "list", data: [{ id }], has_more: false, next: null });
  expect(JSON.parse(cancelled).error).toMatchObject({
    code: "rollout_finished",
    message: `${id} has ended before: it is succeeded`,
  });
});
