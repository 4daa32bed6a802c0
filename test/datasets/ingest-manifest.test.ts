/** A manifest comes in: what is made of good rows, and what is said of bad ones. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { parseActions } from "#inputs/npy.ts";
import { actionsFile, npy, someActions } from "#test/gateway/support/npy-writer.ts";
import { framePng, getWithKey, postForm } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

import { ACTIONS_URL, FRAME_URL, sendRows, urlRow } from "./support/send.ts";

let t: TestGateway;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
});
afterAll(() => t.stop());

const rowsOf = async (id: string, query = ""): Promise<Record<string, unknown>[]> => {
  const answer = await getWithKey(t.app, `/v1/datasets/${id}/rows?${query}`, key.api_key);
  expect(answer.statusCode).toBe(200);
  return answer.json().data;
};

async function upload(body: Buffer, apiKey = key.api_key): Promise<string> {
  const answer = await postForm(t.app, "/v1/uploads", apiKey, [{ name: "file", body, filename: "f" }]);
  expect(answer.statusCode).toBe(201);
  return answer.json().id;
}

const base64 = (bytes: Buffer): { base64: string } => ({ base64: bytes.toString("base64") });

describe("good rows", () => {
  test("of URLs run at once, priced before they are measured", async () => {
    const answer = await sendRows(t, key.api_key, [urlRow({ id: "a" }), urlRow({ num_actions: 24 })], {
      name: "evening",
    });
    expect(answer.statusCode, answer.body).toBe(201);
    const dataset = answer.json();
    expect(answer.headers["location"]).toMatch(new RegExp(`/v1/datasets/${dataset.id}$`));
    expect(dataset).toMatchObject({
      object: "dataset",
      name: "evening",
      model: "pusher",
      state: "running",
      rows: { total: 2, invalid: 0, pending: 2 },
      frames: { expected: 49 + 25, rows_unmeasured: 1, delivered: 0 },
      cost: { price_mils_per_frame: 5, estimated_mils: 5 * 74, budget_mils: null, spent_mils: 0 },
      progress: { done: 0, of: 2, fraction: 0, rows_per_min: null, eta_s: null },
      results: null,
      problems: [],
    });
    expect(dataset.received).toBeGreaterThan(1_700_000_000);
    expect(await rowsOf(dataset.id)).toMatchObject([
      { n: 1, id: "a", state: "pending", seed: 0, num_actions: null, video_url: null },
      { n: 2, id: "row-000002", state: "pending", num_actions: 24 },
    ]);
    const [stored] = await t.db.query(`SELECT source, params FROM dataset_rows WHERE dataset_id = $1 AND n = 1`, [
      dataset.id,
    ]);
    expect(stored).toEqual({
      source: { frame: { kind: "url", url: FRAME_URL.url }, actions: { kind: "url", url: ACTIONS_URL.url } },
      params: { seed: "0", num_steps: 4, guidance: 0, prompt: "" },
    });
  });

  test("keep the 64 bits of their seeds, and take what the dataset says for all", async () => {
    const rows = [
      '{"start_frame": {"url": "https://a.example/f"}, "actions": {"url": "https://a.example/a"}, "seed": 18446744073709551615, "metadata": {"seed": 7}}',
      urlRow({ seed: -1 }),
      urlRow({ seed: "9223372036854775809", prompt: "push" }),
      urlRow({ seed: null }),
    ];
    const params = `{"seed": 9007199254740993, "num_steps": 7, "guidance": 2.5, "prompt": "pull", "start": false}`;
    const answer = await postForm(t.app, "/v1/datasets", key.api_key, [
      { name: "params", body: params },
      { name: "manifest", body: rows.map((row) => (typeof row === "string" ? row : JSON.stringify(row))).join("\n") },
    ]);
    expect(answer.statusCode, answer.body).toBe(201);
    expect(answer.json()).toMatchObject({ state: "ready", started: null });
    const stored = await t.db.query<{ params: object; metadata: object }>(
      `SELECT params, metadata FROM dataset_rows WHERE dataset_id = $1 ORDER BY n`,
      [answer.json().id],
    );
    const all = { num_steps: 7, guidance: 2.5 };
    expect(stored.map(({ params: own }) => own)).toEqual([
      { ...all, seed: "18446744073709551615", prompt: "pull" },
      { ...all, seed: "18446744073709551615", prompt: "pull" },
      { ...all, seed: "9223372036854775809", prompt: "push" },
      { ...all, seed: "9007199254740993", prompt: "pull" },
    ]);
    expect(stored[0]?.metadata).toEqual({ seed: 7 });
    const shown = await getWithKey(t.app, `/v1/datasets/${answer.json().id}/rows`, key.api_key);
    expect(shown.body).toContain('"seed":18446744073709551615,');
  });

  test("bring their inputs in base64, as numbers, or as uploads; measured and stored", async () => {
    const frame = await framePng();
    const [frameId, actionsId] = [await upload(frame), await upload(actionsFile(36, 2))];
    const actions = [[0.5, -1], ...Array.from({ length: 11 }, () => [0.1, 1e-3])];
    const answer = await sendRows(t, key.api_key, [
      { start_frame: base64(frame), actions: base64(actionsFile(24, 2, { dtype: "f8", fortranOrder: true })) },
      { start_frame: { upload: frameId }, actions: { upload: actionsId } },
      { start_frame: { upload: frameId }, actions, num_actions: 12 },
    ]);
    expect(answer.statusCode, answer.body).toBe(201);
    const { id } = answer.json();
    expect(answer.json()).toMatchObject({ frames: { expected: 25 + 37 + 13, rows_unmeasured: 0 } });
    const sources = await t.db.query<{ source: { frame: { key: string }; actions: { key: string } } }>(
      `SELECT source FROM dataset_rows WHERE dataset_id = $1 ORDER BY n`,
      [id],
    );
    expect(sources.map(({ source }) => source)).toEqual([
      {
        frame: { kind: "blob", key: blobKeys.datasetInput(id, 1, "frame") },
        actions: { kind: "blob", key: blobKeys.datasetInput(id, 1, "actions") },
      },
      { frame: { kind: "blob", key: `uploads/${frameId}` }, actions: { kind: "blob", key: `uploads/${actionsId}` } },
      {
        frame: { kind: "blob", key: `uploads/${frameId}` },
        actions: { kind: "blob", key: blobKeys.datasetInput(id, 3, "actions") },
      },
    ]);
    expect(await t.blobs.get(blobKeys.datasetInput(id, 1, "frame"))).toEqual(frame);
    const stored = await t.blobs.get(blobKeys.datasetInput(id, 3, "actions"));
    const read = parseActions(stored, { action_dim: 2, chunk_size: 12, actions_max: 240 }, "actions");
    expect([...read.values]).toEqual(actions.flat().map(Math.fround));
  });

  test("are numbered as an editor does, whatever their line ends", async () => {
    const text = `\uFEFF${JSON.stringify(urlRow())}\r\n\r\n\n${JSON.stringify(urlRow())}`;
    const answer = await postForm(t.app, "/v1/datasets", key.api_key, [{ name: "manifest", body: text }]);
    expect(answer.statusCode, answer.body).toBe(201);
    expect((await rowsOf(answer.json().id)).map(({ id }) => id)).toEqual(["row-000001", "row-000004"]);
  });

  test("belong to the model of the base URL, or to the one that is named", async () => {
    const form = [{ name: "manifest", body: JSON.stringify(urlRow({ num_actions: 32 })) }];
    const scoped = await postForm(t.app, "/m/arm/v1/datasets", key.api_key, form);
    expect(scoped.json()).toMatchObject({ model: "arm", rows: { pending: 1 } });
    const named = await postForm(t.app, "/v1/datasets", key.api_key, [
      { name: "params", body: '{"model":"arm"}' },
      ...form,
    ]);
    expect(named.json()).toMatchObject({ model: "arm" });
    const other = await postForm(t.app, "/v1/datasets", key.api_key, form);
    expect(other.json().detail.problems[0].message).toMatch(/^num_actions: expected a positive multiple of 12/);
  });
});

describe("bad rows", () => {
  const PNG = "iVBORw0KGgo=";
  const cases: readonly (readonly [what: string, row: object | string, code: string, message: RegExp])[] = [
    ["text", "hello", "invalid_input", /^expected a JSON object, got text that is not JSON/],
    ["half a row", '{"id": "x"', "invalid_input", /not JSON/],
    ["an array", "[1]", "invalid_input", /^expected a JSON object, got \[1\]/],
    [
      "a score",
      urlRow({ score: true }),
      "not_supported",
      /^score: rows of a dataset are not scored; POST \/v1\/rollouts/,
    ],
    ["an unknown field", urlRow({ sede: 1 }), "invalid_input", /^unknown field "sede"; expected id, start_frame, /],
    ["no frame", { actions: ACTIONS_URL }, "invalid_input", /^start_frame: expected \{"url": …\} or .*, got none$/],
    [
      "no actions",
      { start_frame: FRAME_URL },
      "invalid_input",
      /^actions: expected .* array of actions of 2 numbers each, got none$/,
    ],
    ["a frame of text", urlRow({ start_frame: "https://a.b/c" }), "invalid_input", /^start_frame: expected \{"url"/],
    [
      "two sources",
      urlRow({ start_frame: { url: "https://a.b/c", base64: PNG } }),
      "invalid_input",
      /^start_frame: expected/,
    ],
    [
      "a file without an archive",
      urlRow({ start_frame: { file: "a.png" } }),
      "invalid_input",
      /^start_frame: expected \{"url": …\} or \{"upload": …\} or \{"base64": …\}, got/,
    ],
    [
      "a path for a URL",
      urlRow({ start_frame: { url: "/etc/passwd" } }),
      "invalid_input",
      /^start_frame\.url: expected a URL/,
    ],
    [
      "a file URL",
      urlRow({ actions: { url: "file:///etc/passwd" } }),
      "invalid_input",
      /^actions\.url: expected a URL/,
    ],
    [
      "a URL inside",
      urlRow({ actions: { url: "http://169.254.169.254/latest" } }),
      "url_not_allowed",
      /^actions\.url: /,
    ],
    [
      "a URL of ten thousand characters",
      urlRow({ actions: { url: `https://a.b/${"c".repeat(10_000)}` } }),
      "invalid_input",
      /at most 2000 characters/,
    ],
    [
      "base64 of something else",
      urlRow({ start_frame: { base64: "aGVsbG8=" } }),
      "invalid_input",
      /^start_frame: expected a PNG or JPEG image, got 5 bytes/,
    ],
    [
      "no base64",
      urlRow({ start_frame: { base64: "not base64!" } }),
      "invalid_input",
      /^start_frame\.base64: expected standard base64/,
    ],
    [
      "half a PNG",
      urlRow({ start_frame: { base64: PNG } }),
      "invalid_input",
      /^start_frame: expected a readable PNG or JPEG/,
    ],
    [
      "actions of another model",
      urlRow({ actions: base64(actionsFile(12, 7)) }),
      "invalid_input",
      /^actions: expected shape \(T, 2\), got shape \(12, 7\)/,
    ],
    ["actions of no multiple", urlRow({ actions: base64(actionsFile(13, 2)) }), "invalid_input", /multiple of 12/],
    [
      "NaN",
      urlRow({ actions: base64(npy([...someActions(11, 2), NaN, 0], [12, 2])) }),
      "invalid_input",
      /got NaN at \[11, 0\]/,
    ],
    [
      "numbers that are none",
      urlRow({ actions: [[1, "2"]] }),
      "invalid_input",
      /^actions\[0\]: expected numbers, got "2"/,
    ],
    [
      "actions of three numbers",
      urlRow({
        actions: [
          [1, 2],
          [1, 2, 3],
        ],
      }),
      "invalid_input",
      /^actions\[1\]: expected an array of 2 numbers, got 3/,
    ],
    [
      "eleven actions",
      urlRow({ actions: Array.from({ length: 11 }, () => [0, 0]) }),
      "invalid_input",
      /^actions: expected shape \(T, 2\) with T a positive multiple of 12, got shape \(11, 2\)/,
    ],
    ["no actions in the array", urlRow({ actions: [] }), "invalid_input", /^actions: expected shape \(T, 2\)/],
    [
      "another count",
      urlRow({ actions: base64(actionsFile(12, 2)), num_actions: 24 }),
      "invalid_input",
      /^num_actions: the actions are 12, got 24/,
    ],
    [
      "half an action",
      urlRow({ num_actions: 12.5 }),
      "invalid_input",
      /^num_actions: expected a positive multiple of 12/,
    ],
    ["too many actions", urlRow({ num_actions: 252 }), "invalid_input", /at most 240, got 252/],
    ["an id with a slash", urlRow({ id: "a/b" }), "invalid_input", /^id: expected 1 to 100 letters/],
    ["an id like a hidden file", urlRow({ id: ".a" }), "invalid_input", /^id: /],
    ["a numeric id", urlRow({ id: 7 }), "invalid_input", /^id: expected .*, got 7/],
    [
      "a seed of words",
      urlRow({ seed: "seven" }),
      "invalid_input",
      /^seed: expected an integer from -2\^63 to 2\^64 - 1, got "seven"/,
    ],
    [
      "a seed too large",
      '{"start_frame":{"url":"https://a.b/c"},"actions":{"url":"https://a.b/c"},"seed":18446744073709551616}',
      "invalid_input",
      /got "18446744073709551616"/,
    ],
    ["no steps", urlRow({ num_steps: 0 }), "invalid_input", /^num_steps: /],
    ["much guidance", urlRow({ guidance: 21 }), "invalid_input", /^guidance: /],
    ["a long prompt", urlRow({ prompt: "x".repeat(513) }), "invalid_input", /^prompt: expected at most 512 bytes/],
    ["a prompt with NUL", urlRow({ prompt: "a\0b" }), "invalid_input", /^prompt: /],
    ["metadata of text", urlRow({ metadata: "x" }), "invalid_input", /^metadata: expected a JSON object/],
    [
      "much metadata",
      urlRow({ metadata: { x: "x".repeat(9000) } }),
      "invalid_input",
      /^metadata: expected at most 8192 bytes/,
    ],
    ["metadata with NUL", urlRow({ metadata: { "a\0": 1 } }), "invalid_input", /^metadata: expected text without NUL/],
    ["metadata with half a surrogate", urlRow({ metadata: { a: ["\ud800"] } }), "invalid_input", /^metadata: /],
    [
      "a tower of metadata",
      urlRow({ metadata: JSON.parse(`${'{"a":'.repeat(40)}1${"}".repeat(40)}`) }),
      "invalid_input",
      /levels of nesting/,
    ],
    ["a tower of arrays", `{"metadata": ${"[".repeat(200_000)}${"]".repeat(200_000)}}`, "invalid_input", /./],
    [
      "an unknown upload",
      urlRow({ start_frame: { upload: `upload_${"0".repeat(32)}` } }),
      "upload_not_found",
      /^start_frame\.upload: there is no upload upload_0+ of yours/,
    ],
    ["no upload id", urlRow({ actions: { upload: "x" } }), "invalid_input", /^actions\.upload: expected the id/],
  ];

  test("are listed with line, id, code and reason; the rest go on", async () => {
    const rows = cases.flatMap(([, row], index) => [urlRow({ id: `good-${index}` }), row]);
    const answer = await sendRows(t, key.api_key, rows);
    expect(answer.statusCode, answer.body).toBe(201);
    const { problems, ...dataset } = answer.json();
    expect(dataset.rows).toMatchObject({ total: 2 * cases.length, invalid: cases.length, pending: cases.length });
    for (const [index, [what, , code, message]] of cases.entries()) {
      expect(problems[index], what).toMatchObject({
        line: 2 * index + 2,
        code,
        message: expect.stringMatching(message),
      });
      expect(problems[index].message.length, what).toBeLessThanOrEqual(500);
    }
    // The id is told where there is one.
    expect(problems.find(({ code }: { code: string }) => code === "url_not_allowed").id).toMatch(/^row-0000\d\d$/);
    const shown = (await getWithKey(t.app, `/v1/datasets/${dataset.id}`, key.api_key)).json();
    expect(shown.problems).toEqual(problems.slice(0, 20));
    const invalid = await rowsOf(dataset.id, "state=invalid&limit=1000");
    expect(invalid.map(({ n }) => n)).toEqual(problems.map(({ line }: { line: number }) => line));
  });

  test.for(cases)("reject a dataset that wants it: %s", async ([, row, , message]) => {
    const answer = await sendRows(t, key.api_key, [urlRow(), row], { on_invalid: "reject" });
    expect(answer.statusCode).toBe(422);
    expect(answer.json()).toMatchObject({
      error: { code: "dataset_rejected" },
      detail: { rows: { total: 2, invalid: 1 }, problems: [{ line: 2, message: expect.stringMatching(message) }] },
    });
  });

  test("that repeat an id name the line that has it, near or far", async () => {
    const far = Array.from({ length: 1200 }, (_unused, index) => urlRow({ id: `r${index}` }));
    const answer = await sendRows(t, key.api_key, [
      ...far,
      urlRow({ id: "r3" }),
      urlRow({ id: "x" }),
      urlRow({ id: "x" }),
      urlRow({ id: "r3" }),
    ]);
    expect(answer.json().rows).toMatchObject({ total: 1204, invalid: 3, pending: 1201 });
    expect(answer.json().problems).toEqual([
      { line: 1201, id: "r3", code: "duplicate_id", message: "id: expected one of its own, got that of line 4" },
      { line: 1203, id: "x", code: "duplicate_id", message: "id: expected one of its own, got that of line 1202" },
      { line: 1204, id: "r3", code: "duplicate_id", message: "id: expected one of its own, got that of line 4" },
    ]);
  });

  test("do not take an id away from a good one", async () => {
    const answer = await sendRows(t, key.api_key, [urlRow({ id: "a", seed: "x" }), urlRow({ id: "a" })]);
    expect(answer.json().rows).toMatchObject({ invalid: 1, pending: 1 });
  });

  test("alone are no dataset", async () => {
    const answer = await sendRows(t, key.api_key, ["hello", "{}"]);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail.message).toMatch(/^2 of 2 rows are bad; the first, on line 1: expected a JSON object/);
  });

  test.for(["", "\n\n\n", "\uFEFF"])("and none at all are no dataset: %j", async (body) => {
    const answer = await postForm(t.app, "/v1/datasets", key.api_key, [{ name: "manifest", body }]);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail.message).toBe("expected at least one row, got none");
  });
});

test("another customer's upload does not exist", async () => {
  const other = await t.newKey();
  const id = await upload(await framePng(), other.api_key);
  const answer = await sendRows(t, key.api_key, [urlRow(), urlRow({ start_frame: { upload: id } })]);
  expect(answer.json().problems).toMatchObject([{ code: "upload_not_found" }]);
});

test("a line that is too long is one bad row, and not held in memory", async () => {
  const long = `{"id": "long", "metadata": {"x": "${"x".repeat(9 * 1024 * 1024)}"}}`;
  const answer = await sendRows(t, key.api_key, [urlRow(), long, urlRow()]);
  expect(answer.json().rows).toMatchObject({ total: 3, invalid: 1, pending: 2 });
  expect(answer.json().problems[0]).toMatchObject({ line: 2, id: null, code: "line_too_long" });
});

test("nobody without a balance has anything stored", async () => {
  const poor = await t.newKey(mils(10));
  const answer = await sendRows(t, poor.api_key, [urlRow()], { start: false });
  expect(answer.statusCode).toBe(402);
  const repeated = await sendRows(t, poor.api_key, [urlRow()], {}, { "idempotency-key": "k" });
  expect(repeated.statusCode).toBe(402);
  const uploaded = await postForm(t.app, "/v1/uploads", poor.api_key, [{ name: "file", body: await framePng() }]);
  expect(uploaded.statusCode).toBe(402);
  expect(await t.db.query(`SELECT FROM datasets WHERE customer_id = $1`, [poor.customer_id])).toEqual([]);
});
