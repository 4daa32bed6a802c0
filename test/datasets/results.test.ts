/** Results as their owner reads them: with PyArrow, from the folder and over the API; and the documented example. */
import { execFile } from "node:child_process";
import { readdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import type { DatasetId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { type ResultRecord, resultsJsonl } from "#datasets/results.ts";
import { resultsParquet } from "#datasets/results-parquet.ts";
import type { Gateway } from "#gateway/app.ts";

import { newCustomer } from "../support/ledger.ts";
import { ensurePython } from "../support/python.ts";
import { assertAddsUp, openRunFixture, type RunFixture, succeed } from "./run-fixture.ts";
import { openRunGateway } from "./support/run-gateway.ts";

// The first run installs PyArrow.
vi.setConfig({ hookTimeout: 300_000 });
const run = promisify(execFile);

interface ReadByPyArrow {
  readonly schema: Readonly<Record<string, string>>;
  readonly row_groups: readonly number[];
  readonly rows: readonly Readonly<Record<string, string | null>>[];
}

let python: string;
let fixture: RunFixture;
beforeAll(async () => {
  python = await ensurePython(join(import.meta.dirname, "pyarrow-requirements.txt"));
});
beforeEach(async () => {
  fixture = await openRunFixture();
});
afterEach(() => fixture.end());

async function pyarrow(file: Uint8Array): Promise<ReadByPyArrow> {
  const path = join(fixture.folder, "read.parquet");
  await writeFile(path, file);
  const { stdout } = await run(python, [join(import.meta.dirname, "read-results.py"), path], { maxBuffer: 2 ** 28 });
  return JSON.parse(stdout) as ReadByPyArrow; // what the script prints
}

const SCHEMA = {
  row_id: "string",
  n: "int32",
  file_name: "string",
  status: "string",
  error_code: "string",
  error_message: "string",
  frames: "int32",
  charged_mils: "int64",
  refunded_mils: "int64",
  engine_wall_ms: "double",
  request_id: "string",
  rollout_id: "string",
  seed: "uint64",
  num_steps: "int32",
  guidance: "double",
  prompt: "string",
  video_bytes: "int64",
  metadata: "string",
};

const record = (n: number, overrides: Partial<ResultRecord> = {}): ResultRecord => ({
  row_id: `ep-${n}`,
  n,
  file_name: `videos/ep-${n}.mp4`,
  status: "succeeded",
  error_code: null,
  error_message: null,
  frames: 49,
  charged_mils: 245n,
  refunded_mils: 0n,
  engine_wall_ms: 12.5,
  request_id: `req_${n}`,
  rollout_id: `rollout_${n}`,
  seed: BigInt(n),
  num_steps: 8,
  guidance: 1.5,
  prompt: "push the block",
  video_bytes: 1_234n,
  metadata: "{}",
  ...overrides,
});

async function* pagesOf(...pages: readonly (readonly ResultRecord[])[]): AsyncGenerator<readonly ResultRecord[]> {
  yield* pages;
}
async function piecesOf(written: AsyncIterable<Buffer>): Promise<Buffer[]> {
  const pieces: Buffer[] = [];
  for await (const piece of written) pieces.push(piece);
  return pieces;
}
const bytesOf = async (written: AsyncIterable<Buffer>): Promise<Buffer> => Buffer.concat(await piecesOf(written));

describe("the file", () => {
  test("keeps every digit and every sign, in Parquet and in JSON lines", async () => {
    const odd: ResultRecord[] = [
      record(1, { seed: 2n ** 64n - 1n, prompt: '"Ünïcödé" \n🤖\\', metadata: '{"größe":"大"}' }),
      record(2, {
        row_id: null,
        file_name: null,
        status: "invalid",
        error_code: "invalid_input",
        error_message: "expected …",
        frames: null,
        engine_wall_ms: null,
        request_id: null,
        rollout_id: null,
        seed: null,
        num_steps: null,
        guidance: null,
        prompt: null,
        video_bytes: null,
      }),
      record(3, { seed: 2n ** 63n, charged_mils: 2n ** 53n + 1n, prompt: "", guidance: 0 }),
    ];
    const { schema, rows } = await pyarrow(await bytesOf(resultsParquet(pagesOf(odd), { withLinks: false })));
    expect(schema).toEqual(SCHEMA);
    expect(rows[0]).toMatchObject({
      seed: "18446744073709551615",
      prompt: '"Ünïcödé" \n🤖\\',
      metadata: '{"größe":"大"}',
    });
    expect(rows[1]).toMatchObject({ row_id: null, file_name: null, frames: null, seed: null, guidance: null, n: "2" });
    expect(rows[2]).toMatchObject({
      seed: "9223372036854775808",
      charged_mils: "9007199254740993",
      prompt: "",
      guidance: "0.0",
    });

    const lines = (await bytesOf(resultsJsonl(pagesOf(odd)))).toString().trim().split("\n");
    expect(lines).toHaveLength(3);
    expect(lines[0]).toContain('"seed":18446744073709551615');
    expect(JSON.parse(lines[0] ?? "")).toMatchObject({ prompt: '"Ünïcödé" \n🤖\\', metadata: '{"größe":"大"}' });
    expect(JSON.parse(lines[1] ?? "")).toMatchObject({ row_id: null, seed: null, status: "invalid" });
    expect(lines[2]).toContain('"charged_mils":9007199254740993');
  });

  test("without rows it has all its columns, as it has where a column is nothing but nulls", async () => {
    const empty = await pyarrow(await bytesOf(resultsParquet(pagesOf(), { withLinks: false })));
    expect(empty).toEqual({ schema: SCHEMA, row_groups: [], rows: [] });
    const nulls = await pyarrow(
      await bytesOf(resultsParquet(pagesOf([record(1, { engine_wall_ms: null, frames: null })]), { withLinks: false })),
    );
    expect(nulls.schema).toEqual(SCHEMA);
  });

  test("is written in row groups, handed on one by one", async () => {
    const pages = Array.from({ length: 5 }, (_, page) =>
      Array.from({ length: 1_000 }, (_unused, i) => record(page * 1_000 + i + 1)),
    );
    const pieces = await piecesOf(resultsParquet(pagesOf(...pages), { withLinks: false }));
    expect(pieces).toHaveLength(4); // three groups and the footer
    const { row_groups, rows } = await pyarrow(Buffer.concat(pieces));
    expect(row_groups).toEqual([2_000, 2_000, 1_000]);
    expect(rows.map(({ n }) => n)).toEqual(Array.from({ length: 5_000 }, (_, i) => String(i + 1)));
  });
});

async function finished(): Promise<string> {
  const id = await fixture.add({
    rows: Array.from({ length: 12 }, (_, i) => ({ metadata: { label: `größer ${i}` } })),
    invalid: 1,
  });
  await fixture.start();
  const engine = fixture.startEngine((rollout, video) =>
    rollout.dataset_row === 5
      ? { kind: "failed", code: "engine_failed", message: "a poison row", frames_delivered: 0 }
      : succeed(rollout, video),
  );
  await fixture.until(id, ({ state }) => state === "completed");
  await engine.stop();
  return id;
}

describe("a finished dataset", () => {
  let gateway: Gateway;
  beforeEach(async () => {
    gateway = await openRunGateway(fixture);
  });
  afterEach(() => gateway.app.close());

  const call = (method: "GET" | "POST", url: string, options: { payload?: object; token?: string } = {}) =>
    gateway.app.inject({
      method,
      url,
      headers: { authorization: `Bearer ${options.token ?? fixture.key.api_key}` },
      ...(options.payload ? { payload: options.payload } : {}),
    });

  test("is loaded from its folder by the documented example", async () => {
    const id = await finished();
    const folder = join(fixture.folder, "blobs", "datasets", id);
    const { stdout } = await run(python, [resolve("examples/load_dataset.py"), folder]);
    const cost = (11 * (fixture.numActions + 1) * 5) / 10_000;
    expect(stdout).toContain("11 succeeded");
    expect(stdout).toContain("1 failed");
    expect(stdout).toContain("1 invalid");
    expect(stdout).toContain(`${11 * (fixture.numActions + 1)} frames for $${cost.toFixed(4)}`);
    expect(stdout).toContain("row 5: failed: engine_failed: a poison row");
    expect(stdout).toContain(`ep-11: ${folder}/videos/ep-11.mp4 seed 11 {'label': 'größer 10'}`);
    expect(stdout).toMatch(/^… and 1 video more$/m); // of a quarter of a million nobody reads a line each
    expect(stdout).not.toContain("ep-12");
    // The loader of Hugging Face refuses records without a file, and a second file of the name metadata.
    const { rows } = await pyarrow(await fixture.blobs.get(blobKeys.datasetMetadata(id)));
    expect((await readdir(folder)).toSorted()).toEqual([
      "metadata.parquet",
      "results.jsonl",
      "results.parquet",
      "videos",
    ]);
    const videos = await readdir(join(folder, "videos"));
    expect(new Set(rows.map(({ file_name }) => file_name))).toEqual(new Set(videos.map((name) => `videos/${name}`)));
    expect(videos).toHaveLength(11);
    const all = (await pyarrow(await fixture.blobs.get(blobKeys.datasetResults(id, "parquet")))).rows;
    expect(all).toHaveLength(13);
    expect(rows).toEqual(all.filter(({ status }) => status === "succeeded"));
    // What the results name and what is stored are the same.
    await run("rm", [join(folder, "videos", "ep-3.mp4")]);
    await expect(run(python, [resolve("examples/load_dataset.py"), folder])).rejects.toThrow("ep-3.mp4");
  });

  test("gives the same over the API, with links that work", async () => {
    const id = await finished();
    const stored = await pyarrow(await fixture.blobs.get(blobKeys.datasetResults(id, "parquet")));
    const answer = await call("GET", `/v1/datasets/${id}/results?format=parquet`);
    expect(answer.statusCode).toBe(200);
    expect(answer.headers["content-type"]).toBe("application/vnd.apache.parquet");
    const read = await pyarrow(answer.rawPayload);
    expect(read.schema).toEqual({ ...SCHEMA, video_url: "string" });
    expect(read.rows).toEqual(stored.rows.map((row, i) => ({ ...row, video_url: read.rows[i]?.["video_url"] })));

    for (const format of ["jsonl", "parquet"] as const) {
      const kept = await call("GET", `/v1/datasets/${id}/results?format=${format}&links=false`);
      expect(kept.rawPayload.equals(await fixture.blobs.get(blobKeys.datasetResults(id, format))), format).toBe(true);
    }
    expect((await call("GET", `/v1/datasets/${id}/results?links=no`)).statusCode).toBe(422);

    const lines = (await call("GET", `/v1/datasets/${id}/results`)).body.trim().split("\n");
    const records = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(records).toHaveLength(13);
    const [videos, none] = [
      records.filter((row) => row["status"] === "succeeded"),
      records.filter((row) => row["status"] !== "succeeded"),
    ];
    expect(none.map(({ video_url }) => video_url)).toEqual([null, null]);
    for (const { row_id, video_url } of videos) {
      expect(video_url).toMatch(/^https:\/\/dreams\.example\//);
      const video = await gateway.app.inject({ method: "GET", url: String(video_url) });
      expect(video.statusCode, String(row_id)).toBe(200);
      expect(video.body).toContain("the video of rollout_");
    }
  });

  test("from a manifest over the API to videos: inputs in base64, as numbers and uploaded", async () => {
    const headers = { authorization: `Bearer ${fixture.key.api_key}` };
    const upload = new FormData();
    upload.set("file", new Blob([Uint8Array.from(fixture.frame)]), "frame.png");
    const uploaded = await gateway.app.inject({ method: "POST", url: "/v1/uploads", headers, payload: upload });
    expect(uploaded.statusCode, uploaded.body).toBe(201);
    const numbers = Array.from({ length: fixture.numActions }, () =>
      Array.from({ length: fixture.model.shapes.action_dim }, () => 0.25),
    );
    const file = fixture.actions(fixture.numActions).toString("base64");
    const lines = [
      { id: "a", start_frame: { base64: fixture.frame.toString("base64") }, actions: numbers, seed: 7 },
      { id: "b", start_frame: { upload: uploaded.json<{ id: string }>().id }, actions: { base64: file }, prompt: "go" },
      { id: "b", start_frame: { base64: "" }, actions: numbers },
    ];
    const form = new FormData();
    form.set("manifest", new Blob([lines.map((line) => JSON.stringify(line)).join("\n")]), "manifest.jsonl");
    const made = await gateway.app.inject({ method: "POST", url: "/v1/datasets", headers, payload: form });
    expect(made.statusCode, made.body).toBe(201);
    const { id } = made.json<{ id: DatasetId }>();
    await fixture.start();
    fixture.startEngine();
    const dataset = await fixture.until(id, ({ state }) => state === "completed");
    expect(dataset).toMatchObject({ rows_total: 3, rows_invalid: 1, rows_succeeded: 2 });
    expect(dataset.frames_expected).toBe(dataset.frames_delivered);
    await assertAddsUp(fixture, id);
    const { rows } = await pyarrow(await fixture.blobs.get(blobKeys.datasetResults(id, "parquet")));
    expect(rows.map(({ row_id, status, seed, prompt }) => ({ row_id, status, seed, prompt }))).toEqual([
      { row_id: "a", status: "succeeded", seed: "7", prompt: "" },
      { row_id: "b", status: "succeeded", seed: "0", prompt: "go" },
      { row_id: "b", status: "invalid", seed: null, prompt: null },
    ]);
  });

  test("is nobody else's", async () => {
    const id = await finished();
    const { api_key: token } = await newCustomer(fixture.database.db);
    for (const [method, url] of [
      ["GET", `/v1/datasets/${id}/results`],
      ["POST", `/v1/datasets/${id}/pause`],
      ["POST", `/v1/datasets/${id}/resume`],
      ["POST", `/v1/datasets/${id}/cancel`],
      ["POST", `/v1/datasets/${id}/retry`],
      ["POST", "/v1/datasets/dataset_nonsense/retry"],
    ] as const) {
      const { statusCode, body } = await call(method, url, { token });
      expect(statusCode, url).toBe(404);
      expect(body).toContain("no such dataset of yours");
    }
  });

  test("is paused, resumed with a budget, cancelled and retried over the API", async () => {
    const id = await fixture.add({ rows: 3, state: "ready" });
    const wrong = await call("POST", `/v1/datasets/${id}/pause`);
    expect(wrong.statusCode).toBe(409);
    expect(wrong.json()).toMatchObject({ detail: expect.stringContaining("this one is ready") });
    const both = await call("POST", `/v1/datasets/${id}/resume`, { payload: { budget_mils: 1, budget_usd: 1 } });
    expect(both.statusCode).toBe(422);
    const resumed = await call("POST", `/v1/datasets/${id}/resume`, { payload: { budget_usd: "1.50" } });
    expect(resumed.json()).toMatchObject({ id, state: "running", cost: { budget_mils: 15_000 } });
    expect((await call("POST", `/v1/datasets/${id}/pause`)).json()).toMatchObject({
      state: "paused",
      pause_reason: "requested",
    });
    expect((await call("POST", `/v1/datasets/${id}/resume`)).json()).toMatchObject({ state: "running" });
    expect((await call("POST", `/v1/datasets/${id}/cancel`)).json()).toMatchObject({ state: "cancelling" });
    await fixture.start();
    await fixture.until(id, ({ state }) => state === "cancelled");
    const retry = await call("POST", `/v1/datasets/${id}/retry`);
    expect(retry.statusCode).toBe(409);
    expect(retry.body).toContain("this one is cancelled");
  });
});
