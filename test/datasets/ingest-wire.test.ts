/** Datasets over real connections: those that break, that are slow, that come many times at once. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { DEFAULT_BOUNDS } from "#gateway/gateway-parts.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { eventually } from "#test/gateway/support/books.ts";
import { actionsFile } from "#test/gateway/support/npy-writer.ts";
import { FORM_TYPE, formBody, framePng, getWithKey } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

import { manifestOf, sendRows, urlRow } from "./support/send.ts";
import { zip } from "./support/zip-writer.ts";

/** Short enough to be waited for here; the shape of the bounds is the real one. */
const arrival = { ...DEFAULT_BOUNDS.arrival, bodyMs: 1_500, patienceMs: 600, lookEveryMs: 50, bytesPerSMin: 1024 };

let t: TestGateway;
let url: URL;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway({ bounds: { ...DEFAULT_BOUNDS, arrival } });
  url = new URL((await t.listen()).url);
  key = await t.newKey();
});
afterAll(() => t.stop());

const head = (bytes: number, path = "/v1/datasets", headers = ""): string =>
  `POST ${path} HTTP/1.1\r\nHost: ${url.host}\r\nAuthorization: Bearer ${key.api_key}\r\n` +
  `Content-Type: ${FORM_TYPE}\r\nContent-Length: ${bytes}\r\n${headers}\r\n`;

interface Talk {
  readonly socket: Socket;
  /** Everything that was answered until the connection closed. */
  readonly answer: Promise<string>;
}

async function open(): Promise<Talk> {
  const socket = connect(Number(url.port), url.hostname);
  await once(socket, "connect");
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  socket.on("error", () => {}); // a reset is an end like any other
  return { socket, answer: once(socket, "close").then(() => text) };
}

const datasets = (
  where = "true",
): Promise<{ id: string; state: string; message: string | null; idempotency_key: string | null }[]> =>
  t.db.query(`SELECT id, state, message, idempotency_key FROM datasets WHERE ${where} ORDER BY created_at DESC`);

const receiving = async (): Promise<number> => (await datasets("state = 'receiving'")).length;

const kept = async (): Promise<number> => (await datasets("state <> 'rejected'")).length;
const sendUnderBroken = () => sendRows(t, key.api_key, [urlRow()], {}, { "idempotency-key": "broken" });

async function storedInputs(): Promise<number> {
  let count = 0;
  for await (const _blob of t.blobs.list("dataset_inputs/")) count += 1;
  return count;
}

describe("an upload that breaks off", () => {
  test("at any byte makes no dataset, frees its key, and leaves no inputs", async () => {
    const frame = await framePng();
    const row = {
      start_frame: { base64: frame.toString("base64") },
      actions: { base64: actionsFile(12, 2).toString("base64") },
    };
    const bodies = [
      formBody([{ name: "params", body: '{"on_invalid":"reject"}' }, manifestOf(Array.from({ length: 8 }, () => row))]),
      formBody([
        {
          name: "archive",
          filename: "a.zip",
          body: zip([
            { name: "a.png", body: frame },
            { name: "a.npy", body: actionsFile(12, 2) },
          ]),
        },
      ]),
    ];
    const before = await kept();
    for (const body of bodies) {
      const cuts = Array.from({ length: 12 }, (_unused, index) => Math.floor((body.length * index) / 12));
      for (const cut of [...cuts, body.length - 3, body.length - 1]) {
        const { socket, answer } = await open();
        socket.write(head(body.length, "/v1/datasets", "Idempotency-Key: broken\r\n"));
        if (cut > 0) await new Promise((resolve) => socket.write(body.subarray(0, cut), resolve));
        // Half of them while it is being read.
        if (cut % 2 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
        socket.destroy();
        await answer;
      }
    }
    // The gateway may begin with what it got only after the caller has gone: what counts is how each ends.
    await eventually(kept, (count) => count === before);
    await eventually(storedInputs, (count) => count === 0);
    // The key is free.
    const again = await eventually(sendUnderBroken, ({ statusCode }) => statusCode !== 409);
    expect(again.statusCode, again.body).toBe(201);
    await eventually(kept, (count) => count === before + 1);
    expect(await datasets("idempotency_key = 'broken'")).toMatchObject([{ id: again.json().id }]);
  });

  test.for([1, 2, 10, 30, 60])(
    "before its last boundary, with all the bytes that were promised: %i less",
    async (missing) => {
      const before = (await datasets("state <> 'rejected'")).length;
      const whole = formBody([manifestOf(Array.from({ length: 3 }, () => urlRow()))]);
      const body = whole.subarray(0, whole.length - 2 - missing);
      const answer = await t.app.inject({
        method: "POST",
        url: "/v1/datasets",
        headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE },
        payload: body,
      });
      expect(answer.statusCode, answer.body).toBe(400);
      expect((await datasets("state <> 'rejected'")).length).toBe(before);
      expect(await receiving()).toBe(0);
    },
  );
});

describe("a body that comes slowly", () => {
  test("is taken for as long as it keeps coming, beyond the time of others", async () => {
    const body = formBody([manifestOf(Array.from({ length: 60 }, () => urlRow()))]);
    const { socket, answer } = await open();
    socket.write(head(body.length, "/v1/datasets", "Connection: close\r\n"));
    const started = performance.now();
    const step = Math.ceil(body.length / 24);
    for (let at = 0; at < body.length; at += step) {
      socket.write(body.subarray(at, at + step));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(performance.now() - started).toBeGreaterThan(arrival.bodyMs);
    expect(await answer).toMatch(/^HTTP\/1.1 201 /);
  });

  test.for([
    ["before the form begins", 0],
    ["in the manifest", 400],
  ] as const)("drop by drop is cut off %s, and nothing is left of it", async ([, sent]) => {
    const rows = Array.from({ length: 500 }, () => urlRow());
    const body = formBody([manifestOf(rows)]);
    const { socket, answer } = await open();
    socket.write(head(body.length));
    socket.write(body.subarray(0, sent));
    let at: number = sent;
    const drip = setInterval(() => socket.write(body.subarray(at, (at += 1))), 100);
    const started = performance.now();
    expect(await answer).toMatch(/^HTTP\/1.1 408 [\s\S]*did not arrive in time/);
    clearInterval(drip);
    expect(performance.now() - started).toBeLessThan(5_000);
    await eventually(receiving, (count) => count === 0);
  });

  test("to any other route is cut off at its time, however steady", async () => {
    for (const path of ["/v1/predict", "/v1/rollouts", "/v1/uploads", "/v1/keys"]) {
      const { socket, answer } = await open();
      socket.write(head(1_000_000, path));
      const drip = setInterval(() => socket.write(Buffer.alloc(2_000)), 50);
      const started = performance.now();
      await answer;
      clearInterval(drip);
      expect(performance.now() - started, path).toBeLessThan(arrival.bodyMs + 4_000);
    }
  });
});

const sendUnder = (idempotencyKey: string) => (what: readonly (object | string)[], params: object) =>
  sendRows(t, key.api_key, what, params, { "idempotency-key": idempotencyKey });

describe("under an Idempotency-Key", () => {
  const rows = Array.from({ length: 700 }, (_unused, index) => urlRow({ id: `r${index}` }));

  test("fifty copies at once make one dataset", async () => {
    const body = formBody([manifestOf(rows)]);
    const answers = await Promise.all(
      Array.from({ length: 50 }, () =>
        fetch(new URL("/v1/datasets", url), {
          method: "POST",
          headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE, "idempotency-key": "fifty" },
          body,
        }),
      ),
    );
    const bodies = await Promise.all(
      answers.map(async (answer) => (await answer.json()) as { id?: string; error?: { code: string } }),
    );
    const made = new Set(bodies.flatMap(({ id }) => id ?? []));
    const expected = ["still_receiving", "rate_limited", "no_capacity"];
    expect(bodies.flatMap(({ error }) => error?.code ?? []).filter((code) => !expected.includes(code))).toEqual([]);
    const refused = answers.filter(({ ok }) => !ok);
    expect(refused.filter(({ headers }) => Number(headers.get("retry-after")) > 0)).toHaveLength(refused.length);
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
    expect(made.size).toBe(1);
    expect(await datasets("idempotency_key = 'fifty'")).toHaveLength(1);
    const [count] = await t.db.query<{ n: number }>(
      `SELECT count(*)::int AS n FROM dataset_rows WHERE dataset_id = $1`,
      [...made],
    );
    expect(count?.n).toBe(700);
  });

  test("the same again is the same dataset; anything else is refused", async () => {
    const send = sendUnder("same");
    const first = await send(rows, { name: "a" });
    expect(first.statusCode).toBe(201);
    const again = await send(rows, { name: "a" });
    expect(again.statusCode).toBe(200);
    expect(again.json().id).toBe(first.json().id);
    for (const [what, params] of [
      [rows.slice(1), { name: "a" }],
      [rows, { name: "b" }],
    ] as const) {
      const other = await send(what, params);
      expect(other.statusCode).toBe(422);
      expect(other.json().error.code).toBe("idempotency_mismatch");
    }
    const foreign = await t.newKey();
    expect((await sendRows(t, foreign.api_key, rows, {}, { "idempotency-key": "same" })).statusCode).toBe(201);
  });

  test("what was rejected may be sent again", async () => {
    const odd = await sendUnder("a key of words")([urlRow()], {});
    expect(odd.json().error.message).toMatch(/visible ASCII characters/);
    const send = sendUnder("second-chance");
    expect((await send([urlRow(), "oops"], { on_invalid: "reject" })).json().error.code).toBe("dataset_rejected");
    expect((await send([urlRow()], { on_invalid: "reject" })).statusCode).toBe(201);
  });

  test("one that is being received is waited for, unless its gateway has gone silent", async () => {
    const body = formBody([manifestOf(rows)]);
    const { socket } = await open();
    socket.write(head(body.length, "/v1/datasets", "Idempotency-Key: slow\r\n"));
    socket.write(body.subarray(0, body.length / 2));
    await eventually(receiving, (count) => count === 1);
    const second = await sendRows(t, key.api_key, rows, {}, { "idempotency-key": "slow" });
    expect(second.statusCode).toBe(409);
    expect(second.json().error.code).toBe("still_receiving");
    expect(second.headers["retry-after"]).toBe("5");
    await t.db.query(`UPDATE datasets SET worked_at = now() - interval '21 s' WHERE state = 'receiving'`);
    const third = await sendRows(t, key.api_key, rows, {}, { "idempotency-key": "slow" });
    expect(third.statusCode, third.body).toBe(201);
    socket.destroy();
    await eventually(receiving, (count) => count === 0);
    expect((await datasets("idempotency_key = 'slow'")).map(({ id }) => id)).toEqual([third.json().id]);
  });
});

describe("limits", () => {
  test("four at once of one customer, however many keys", async () => {
    const body = formBody([manifestOf(Array.from({ length: 2_000 }, () => urlRow()))]);
    const open4 = await Promise.all(Array.from({ length: 4 }, open));
    for (const { socket } of open4) socket.write(head(body.length));
    let sent = 0;
    // Fast enough to be waited for, however slow this machine is; the rest of the body never comes.
    const feeding = setInterval(() => {
      for (const { socket } of open4) socket.write(body.subarray(sent, sent + 500));
      sent += 500;
    }, 50);
    try {
      await eventually(receiving, (count) => count === 4);
      const fifth = await sendRows(t, key.api_key, [urlRow()]);
      // Each gateway has slots of its own.
      expect(fifth.statusCode).toBe(201);
      const { socket, answer } = await open();
      const small = formBody([manifestOf([urlRow()])]);
      socket.write(head(small.length, "/v1/datasets", "Connection: close\r\n") + small.toString());
      expect(await answer).toMatch(/^HTTP\/1.1 429 [\s\S]*retry-after: 10[\s\S]*at most 4 datasets/i);
    } finally {
      clearInterval(feeding);
    }
    for (const each of open4) each.socket.destroy();
    await eventually(receiving, (count) => count === 0);
  });

  test("a body that says it is larger than may be is refused unread", async () => {
    const { socket, answer } = await open();
    socket.write(head(5 * 1024 ** 3, "/v1/datasets", "Connection: close\r\n"));
    await once(socket, "data");
    socket.destroy();
    expect(await answer).toMatch(/^HTTP\/1.1 413 [\s\S]*at most 4096 MB/);
  });

  test.for([
    ["no parts", [], /got no parts/],
    ["params alone", [{ name: "params", body: "{}" }], /got params alone/],
    [
      "an unknown part",
      [{ name: "frame", body: "x" }],
      /^"frame": unknown part; expected "params" \(optional\), then one/,
    ],
    [
      "params after the file",
      [manifestOf([urlRow()]), { name: "params", body: "{}" }],
      /got another part after the file: "params"/,
    ],
    ["two files", [manifestOf([urlRow()]), manifestOf([urlRow()])], /got another part after the file: "manifest"/],
    [
      "two params",
      [
        { name: "params", body: "{}" },
        { name: "params", body: "{}" },
      ],
      /^params: expected once/,
    ],
    [
      "params of text",
      [{ name: "params", body: "x" }, manifestOf([urlRow()])],
      /^params: expected a JSON object, got text that is not JSON/,
    ],
    [
      "an unknown field",
      [{ name: "params", body: '{"sede":1}' }, manifestOf([urlRow()])],
      /^params: unknown field "sede"; expected name, model/,
    ],
    ["two budgets", [{ name: "params", body: '{"budget_mils":1,"budget_usd":1}' }, manifestOf([urlRow()])], /got both/],
    [
      "a budget of words",
      [{ name: "params", body: '{"budget_usd":"a lot"}' }, manifestOf([urlRow()])],
      /^params\.budget_usd: expected dollars/,
    ],
    [
      "a negative budget",
      [{ name: "params", body: '{"budget_mils":-1}' }, manifestOf([urlRow()])],
      /^params\.budget_mils: expected a whole number/,
    ],
    [
      "a seed of words",
      [{ name: "params", body: '{"seed":"x"}' }, manifestOf([urlRow()])],
      /^seed: expected an integer/,
    ],
    [
      "an unknown model",
      [{ name: "params", body: '{"model":"x"}' }, manifestOf([urlRow()])],
      /^model: expected one of/,
    ],
    [
      "a webhook inside",
      [{ name: "params", body: '{"webhook_url":"http://10.0.0.1/"}' }, manifestOf([urlRow()])],
      /^params\.webhook_url: /,
    ],
  ] as const)("a form with %s", async ([, parts, message]) => {
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/datasets",
      headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE },
      payload: formBody(parts),
    });
    expect(answer.statusCode, answer.body).toBe(422);
    expect(answer.json().detail).toMatch(message);
    expect(await receiving()).toBe(0);
  });

  test("a budget in dollars is exact mils", async () => {
    const answer = await sendRows(t, key.api_key, [urlRow()], { budget_usd: "12.3456", start: false });
    expect(answer.json().cost.budget_mils).toBe(123_456);
  });
});

describe("datasets are their customer's alone", () => {
  test("and listed newest first, by cursor", async () => {
    const own = await t.newKey();
    const other = await t.newKey();
    const ids: string[] = [];
    for (let index = 0; index < 5; index += 1)
      ids.unshift((await sendRows(t, own.api_key, [urlRow()], { start: index % 2 === 0 })).json().id);
    const page = async (
      query: string,
      apiKey = own.api_key,
    ): Promise<{ data: { id: string }[]; next: string | null; has_more: boolean }> =>
      (await getWithKey(t.app, `/v1/datasets?${query}`, apiKey)).json();
    const first = await page("limit=2");
    expect(first).toMatchObject({ has_more: true, next: ids[1] });
    const second = await page(`limit=3&after=${first.next}`);
    expect(second).toMatchObject({ has_more: false, next: null });
    expect([...first.data, ...second.data].map(({ id }) => id)).toEqual(ids);
    expect((await page("state=ready")).data.map(({ id }) => id)).toEqual([ids[1], ids[3]]);
    expect((await page("", other.api_key)).data).toEqual([]);
    for (const path of [`${ids[0]}`, `${ids[0]}/rows`, "dataset_0", `dataset_${"0".repeat(32)}`]) {
      const answer = await getWithKey(t.app, `/v1/datasets/${path}`, other.api_key);
      expect(answer.statusCode).toBe(404);
      expect(answer.json().error.code).toBe("dataset_not_found");
    }
    expect((await getWithKey(t.app, `/v1/datasets?after=${ids[0]}`, other.api_key)).statusCode).toBe(404);
  });

  test("wait answers when it rests", async () => {
    const { id, state } = (await sendRows(t, key.api_key, [urlRow()])).json();
    expect(state).toBe("running");
    const started = performance.now();
    const waiting = getWithKey(t.app, `/v1/datasets/${id}?wait=20`, key.api_key);
    await new Promise((resolve) => setTimeout(resolve, 300));
    await t.db.query(
      `UPDATE datasets SET state = 'paused', pause_reason = 'requested', resting_since = now() WHERE id = $1`,
      [id],
    );
    expect((await waiting).json()).toMatchObject({ state: "paused", pause_reason: "requested" });
    expect(performance.now() - started).toBeLessThan(5_000);
    const moving = await getWithKey(t.app, `/v1/datasets/${id}`, key.api_key);
    expect(moving.headers["retry-after"]).toBeUndefined();
  });
});

test("a video of a row is served by its signed link alone", async () => {
  const { id } = (await sendRows(t, key.api_key, [urlRow({ id: "a" }), urlRow({ id: "b" })])).json();
  const video = `datasets/${id}/videos/a.mp4`;
  await t.blobs.put(video, Buffer.from("0123456789"));
  await t.db.query(
    `WITH row AS (UPDATE dataset_rows SET state = 'succeeded', video_key = $2, video_bytes = 10, finished_at = now() WHERE dataset_id = $1 AND n = 1)
     UPDATE datasets SET rows_pending = rows_pending - 1, rows_succeeded = 1 WHERE id = $1`,
    [id, video],
  );
  const rows = (await getWithKey(t.app, `/v1/datasets/${id}/rows`, key.api_key)).json().data;
  expect(rows[1].video_url).toBeNull();
  const link = new URL(rows[0].video_url);
  const get = (at: URL, headers = {}) => t.app.inject({ url: at.pathname + at.search, headers });
  expect((await get(link)).body).toBe("0123456789");
  const part = await get(link, { range: "bytes=2-4" });
  expect([part.statusCode, part.body]).toEqual([206, "234"]);
  for (const [name, value] of [
    ["row", "2"],
    ["expires", "9999999999"],
    ["signature", "00"],
  ] as const) {
    const forged = new URL(link);
    forged.searchParams.set(name, value);
    expect((await get(forged)).statusCode).toBe(403);
  }
  await t.blobs.delete(video);
  expect((await get(link)).statusCode).toBe(404);
});

test("rows of a dataset that is not being received any more are not taken", async () => {
  const body = formBody([manifestOf(Array.from({ length: 3_000 }, () => urlRow()))]);
  const { socket, answer } = await open();
  socket.write(head(body.length, "/v1/datasets", "Connection: close\r\n"));
  socket.write(body.subarray(0, 200_000));
  await eventually(receiving, (count) => count === 1);
  await t.db.query(`UPDATE datasets SET state = 'rejected', finished_at = now() WHERE state = 'receiving'`);
  socket.write(body.subarray(200_000));
  expect(await answer).toMatch(/^HTTP\/1.1 422 [\s\S]*not being received any more/);
});
