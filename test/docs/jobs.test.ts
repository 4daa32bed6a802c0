/** The commands of docs/jobs.md, run as they stand there, one after the other in one shell. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
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
  const page = await readFile("docs/jobs.md", "utf8");
  const blocks = [...page.matchAll(/^```sh\n([^`]*)^```$/gm)].map(([, block]) => block ?? "");
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

test("every command of docs/jobs.md does what the page says", async () => {
  const [submitted = "", , asked = "", waited = "", , listed = "", cancelled = "", ...rest] = printed;
  expect(rest.map((text) => text.trim())).toEqual([""]);
  expect(submitted).toContain("HTTP/1.1 202 Accepted");
  expect(submitted).toMatch(/^location: http:\/\/\S+\/v1\/rollouts\/rollout_[0-9a-f]{32}\r$/im);
  expect(submitted).toMatch(/^retry-after: \d+\r$/im);
  const { id } = JSON.parse(asked);
  expect(submitted).toContain(id);
  expect(JSON.parse(waited)).toMatchObject({ id, status: "succeeded", seed: 7, charged_mils: 245, refunded_mils: 0 });
  expect((await stat(join(folder, "rollout.mp4"))).size).toBeGreaterThan(500);
  expect(JSON.parse(listed)).toMatchObject({ object: "list", data: [{ id }], has_more: false, next: null });
  expect(JSON.parse(cancelled).error).toMatchObject({
    code: "rollout_finished",
    message: `${id} has ended before: it is succeeded`,
  });
});
