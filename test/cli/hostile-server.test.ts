/** Commands against a server that means harm: to the terminal that shows its words, to the disk that keeps its files. */
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { readdir } from "node:fs/promises";

import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";

import { createLiveTable } from "#cli/datasets/live-table.ts";
import { tableText, visible } from "#cli/output.ts";

import { type CustomerShell, openShell } from "./customer-run.ts";

let answer: RequestListener;
const server = createServer((request, response) => answer(request, response));
let url: string;
let shell: CustomerShell;
beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  await shell.remove();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});
beforeEach(async () => {
  shell ??= await openShell(url, "dre_test");
});

/** Clears the screen, sets the title, and turns the text around. */
const EVIL = "\u001B[2J\u001B]0;pwned\u0007\u009B31m\u202Eevil";

const rollout = {
  id: "rollout_1",
  model: EVIL,
  created: 1,
  status: "failed",
  queue_position: null,
  frames: 1,
  frames_done: null,
  frames_total: 1,
  batch_size: 1,
  engine_wall_ms: null,
  cost_mils: 0,
  video_urls: [] as string[],
  request_id: EVIL,
  error: { code: EVIL, message: `${EVIL}\nand more` },
};

const gives =
  (status: number, body: object): RequestListener =>
  (_request, response) => {
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  };

const HARM = ["\u001B", "\u0007", "\u009B", "\u202E"];
const withoutHarm = (text: string): void => expect(HARM.filter((character) => text.includes(character))).toEqual([]);

test("what a server says cannot move the cursor of the terminal that shows it", async () => {
  answer = gives(200, rollout);
  const got = await shell.run("rollouts", "get", "rollout_1");
  expect([got.code, got.stdout]).toEqual([0, expect.stringContaining("evil")]);
  withoutHarm(got.stdout + got.stderr);

  const waited = await shell.run("rollouts", "wait", "rollout_1");
  expect([waited.code, waited.stdout]).toEqual([3, expect.stringContaining("evil")]);
  withoutHarm(waited.stdout + waited.stderr);

  answer = gives(422, { detail: EVIL, error: { code: EVIL, message: EVIL, request_id: EVIL } });
  const refused = await shell.run("rollouts", "get", "rollout_1");
  expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining("evil")]);
  withoutHarm(refused.stdout + refused.stderr);
});

test("nor can what a webhook's receiver answered", async () => {
  const attempt = { n: 1, at: 1, duration_ms: 1, status: 200, error: null, excerpt: `${EVIL}\nand more` };
  const nothing = { endpoint: null, rollout: null, dataset: null, last_error: null, next_attempt_at: null };
  const delivery = { id: "msg_1", url: EVIL, event: EVIL, state: "failed", reason: EVIL, attempts: 1, sending: false };
  answer = gives(200, { ...nothing, ...delivery, last_status: 200, created: 1, log: [attempt] });
  for (const [args, code] of [
    [["deliveries", "msg_1"], 0],
    [["test", "endpoint_1"], 3],
  ] as const) {
    const shown = await shell.run("webhooks", ...args);
    expect([shown.code, shown.stdout]).toEqual([code, expect.stringContaining("evil")]);
    withoutHarm(shown.stdout + shown.stderr);
  }
});

test("nor in a table, and no cell becomes two lines", () => {
  expect(tableText([["a\nb", EVIL]])).toMatch(/^a b {2}\uFFFD\[2J/);
  expect(visible("é 漢 👩‍🚀\n")).toBe("é 漢 👩‍🚀\n");
  const written: string[] = [];
  const terminal = { columns: 200, write: (text: string) => written.push(text) > 0 };
  const counts = { total: 1, invalid: 0, pending: 0, running: 0, succeeded: 1, failed: 0, cancelled: 0, expired: 0 };
  const cost = { price_mils_per_frame: 5, estimated_mils: 0, budget_mils: null, held_mils: 0, refunded_mils: 0 };
  createLiveTable(terminal as unknown as NodeJS.WriteStream).show({
    id: "dataset_1",
    name: EVIL,
    model: "m",
    state: "paused",
    pause_reason: "by_you",
    message: EVIL,
    created: 1,
    started: 1,
    finished: null,
    rows: counts,
    cost: { ...cost, spent_mils: 0 },
    frames: { expected: 1, delivered: 1, rows_unmeasured: 0 },
    progress: { done: 1, of: 1, rows_per_min: null, eta_s: null },
  });
  expect(written.join("")).toContain("evil");
  withoutHarm(written.join(""));
});

test("an id that is a path is no id", async () => {
  const before = await readdir(shell.folder);
  answer = gives(200, { ...rollout, id: "../escaped", status: "succeeded", video_urls: [`${url}/video`] });
  const saved = await shell.run("rollouts", "save", "rollout_1");
  expect([saved.code, saved.stderr]).toEqual([1, expect.stringMatching(/what this version does not know: \/id/)]);
  expect(await readdir(shell.folder)).toEqual(before);
});
