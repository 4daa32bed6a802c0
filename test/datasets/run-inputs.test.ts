/** Rows whose inputs are fetched from URLs: what comes, what does not, and who else has to wait for it. */
import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import sharp from "sharp";
import { afterEach, beforeEach, expect, test } from "vitest";

import { BODY_BYTES_MAX } from "#contract/limits.ts";
import type { InputRef } from "#datasets/row.ts";
import { createOutbound } from "#platform/outbound.ts";

import { assertBooksBalance, newCustomer } from "../support/ledger.ts";
import { assertAddsUp, openRunFixture, PRICE, type RunFixture } from "./run-fixture.ts";

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

let fixture: RunFixture;
let server: Server;
let answers: Record<string, Answer>;
let asked: string[];

beforeEach(async () => {
  fixture = await openRunFixture();
  answers = {
    "/frame.png": (_, response) => response.end(fixture.frame),
    "/actions.npy": (_, response) => response.end(fixture.actions(fixture.numActions)),
  };
  asked = [];
  server = createServer((request, response) => {
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    asked.push(path);
    const answer = answers[path];
    if (answer) answer(request, response);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterEach(async () => {
  await fixture.end();
  server.closeAllConnections();
  server.close();
});

const at = (path: string): InputRef => ({
  kind: "url",
  url: `http://127.0.0.1:${(server.address() as AddressInfo).port}${path}`, // it listens on TCP
});

test("rows by URL run; one frame that many rows name is fetched once a slice, and rows are measured as they come", async () => {
  const id = await fixture.add({
    rows: Array.from({ length: 20 }, () => ({
      frame: at("/frame.png"),
      actions: at("/actions.npy"),
      num_actions: null,
    })),
  });
  expect(await fixture.read(id)).toMatchObject({ rows_unmeasured: 20, frames_expected: 0n });
  await fixture.start();
  fixture.startEngine();
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  const frames = 20 * (fixture.numActions + 1);
  expect(dataset).toMatchObject({ rows_succeeded: 20, rows_unmeasured: 0, frames_expected: BigInt(frames) });
  expect(dataset.charged_mils).toBe(BigInt(frames * PRICE));
  expect(asked.filter((path) => path === "/frame.png")).toHaveLength(1);
  await assertAddsUp(fixture, id);
});

test("a row whose inputs do not come, or are no good, fails with the reason and costs nothing", async () => {
  const frame = at("/frame.png");
  let again = 0;
  answers["/twice-500.npy"] = (_, response) => {
    again += 1;
    if (again < 3) response.writeHead(500).end();
    else response.end(fixture.actions(fixture.numActions));
  };
  answers["/503.npy"] = (_, response) => response.writeHead(503).end();
  answers["/elsewhere.npy"] = (_, response) => response.writeHead(302, { location: "/actions.npy" }).end();
  answers["/broken-off.npy"] = (_, response) => {
    response.writeHead(200, { "content-length": "1000" });
    response.write("x", () => response.destroy());
  };
  answers["/endless.npy"] = (_, response) => response.end(Buffer.alloc(2 ** 20 + 1));
  answers["/nan.npy"] = (_, response) => {
    const file = fixture.actions(fixture.numActions);
    file.writeFloatLE(NaN, file.length - 4);
    response.end(file);
  };
  const cases: readonly (readonly [string, string | null, RegExp])[] = [
    ["/twice-500.npy", null, /^$/],
    [
      "/503.npy",
      "fetch_failed",
      /actions: GET http:\/\/127\.0\.0\.1:\d+\/503\.npy answered 503, expected 200, 3 times/,
    ],
    ["/none.npy?secret=1", "fetch_failed", /\/none\.npy answered 404, expected 200$/],
    ["/elsewhere.npy", "fetch_failed", /answered 302/],
    ["/broken-off.npy", "fetch_failed", /broken-off\.npy failed: .*, 3 times/],
    ["/endless.npy", "fetch_failed", /answered with more than 1 MB$/],
    ["/frame.png", "invalid_input", /actions: expected a \.npy file/],
    ["/nan.npy", "invalid_input", /finite numbers, got NaN/],
  ];
  const id = await fixture.add({
    rows: [
      ...cases.map(([path]) => ({ frame, actions: at(path) })),
      { frame: at("/actions.npy"), actions: at("/actions.npy") },
      { frame, actions: at("/actions.npy"), num_actions: 2 * fixture.numActions },
      { frame: { kind: "blob" as const, key: "uploads/upload_gone" } },
    ],
  });
  const before = await fixture.balance();
  await fixture.start();
  fixture.startEngine();
  const dataset = await fixture.until(id, ({ state }) => state === "completed", 25_000);
  expect(dataset).toMatchObject({ rows_succeeded: 1, rows_failed: 10 });
  expect(await fixture.balance()).toBe(before - BigInt((fixture.numActions + 1) * PRICE));
  const rows = await fixture.rows(id);
  for (const [index, [path, code, message]] of cases.entries()) {
    expect(rows[index]?.error_code, path).toBe(code);
    expect(rows[index]?.error_message ?? "", path).toMatch(message);
  }
  expect(rows[2]?.error_message).not.toContain("secret");
  expect(rows[8]).toMatchObject({ error_code: "invalid_input", error_message: expect.stringContaining("start_frame") });
  expect(rows[9]).toMatchObject({ error_code: "invalid_input", error_message: expect.stringContaining("num_actions") });
  expect(rows[10]).toMatchObject({ error_code: "fetch_failed", charged_mils: 0n, try: 0, rollout_id: null });
  expect(asked.filter((path) => path === "/503.npy")).toHaveLength(3);
  expect(asked.filter((path) => path === "/none.npy")).toHaveLength(1);
  await assertAddsUp(fixture, id);
  await assertBooksBalance(fixture.database.db);
});

test("large start frames are fetched few at once, and one beyond the limit fails its row", async () => {
  const raw = { width: 1_400, height: 1_400, channels: 3 } as const;
  const file = await sharp(randomBytes(1_400 * 1_400 * 3), { raw })
    .png({ compressionLevel: 0 })
    .toBuffer();
  expect(file.length).toBeGreaterThan(4 * 2 ** 20);
  const visits = new Map<string, number>();
  let open = 0;
  let openMost = 0;
  const paths = Array.from({ length: 6 }, (_, i) => `/large-${i}.png`);
  for (const path of paths) {
    answers[path] = (_, response) => {
      visits.set(path, (visits.get(path) ?? 0) + 1);
      if (visits.get(path) === 1) {
        response.end(file); // it is left off where it gets large
        return;
      }
      openMost = Math.max(openMost, ++open);
      setTimeout(() => response.end(file, () => (open -= 1)), 100);
    };
  }
  answers["/huge.png"] = (_, response) => response.end(Buffer.alloc(BODY_BYTES_MAX + 1));
  const id = await fixture.add({ rows: [...paths, "/huge.png"].map((path) => ({ frame: at(path) })) });
  await fixture.start();
  fixture.startEngine();
  const dataset = await fixture.until(id, ({ state }) => state === "completed", 25_000);
  const rows = await fixture.rows(id);
  expect(rows[6]).toMatchObject({
    error_code: "fetch_failed",
    error_message: expect.stringMatching(/more than 32 MB$/),
  });
  expect(dataset).toMatchObject({ rows_succeeded: 6, rows_failed: 1 });
  expect(openMost).toBe(2);
}, 40_000);

test("nothing is fetched from addresses that only we can reach", async () => {
  const id = await fixture.add({ rows: [{ actions: at("/actions.npy") }] });
  await fixture.start({ outbound: createOutbound({ allowPrivate: false }) });
  await fixture.until(id, ({ state }) => state === "completed");
  expect((await fixture.rows(id))[0]).toMatchObject({ state: "failed", error_code: "fetch_failed" });
  expect(asked).toEqual([]);
});

test("a server that hangs keeps back nobody else, and a cancel does not wait for it", async () => {
  answers["/hangs.npy"] = () => undefined;
  const slow = await Promise.all(
    Array.from({ length: 6 }, () =>
      fixture.add({ rows: Array.from({ length: 40 }, () => ({ actions: at("/hangs.npy") })) }),
    ),
  );
  const other = await newCustomer(fixture.database.db);
  const id = await fixture.add({ rows: 30, key: other });
  await fixture.start();
  fixture.startEngine();
  await fixture.until(id, ({ state }) => state === "completed", 8_000);
  // Of one customer's datasets some wait, and each of them asks a few times at once.
  expect(asked.length).toBeLessThanOrEqual(4 * 8);

  const [first] = slow;
  if (!first) throw new Error("there are six");
  await fixture.database.db.query("UPDATE datasets SET state = 'cancelling' WHERE finished_at IS NULL");
  await fixture.until(first, ({ state }) => state === "cancelled", 8_000);
});
