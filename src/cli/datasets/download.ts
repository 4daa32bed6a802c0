/**
 * `datasets download`: videos and records in the layout of the store, `videos/<row_id>.mp4` beside `metadata.parquet` and
 * `results.jsonl|parquet`. May be broken off and run again, also while the dataset still runs.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { ROW_ID } from "#datasets/manifest-row.ts";
import { errorCode } from "#platform/error-code.ts";

import { patiently } from "../api/client.ts";
import { download, openLink, sizeOf } from "../api/download.ts";
import { ApiProblem } from "../api/problem.ts";
import { DatasetReply, RowPage, type RowReply } from "../api/replies.ts";
import { type Bar, createBar } from "../bars.ts";
import type { Customer } from "../customer-options.ts";
import { EXIT } from "../exit-codes.ts";
import { inParallel } from "../in-parallel.ts";
import { interruptible } from "../interrupt.ts";
import { bytesText } from "../output.ts";
import { eachOf } from "../paging.ts";
import { UserError } from "../user-error.ts";
import { cannotRead } from "../user-path.ts";
import { writeMetadata } from "./metadata.ts";
import { isAtRest, stateText } from "./show.ts";

export interface DownloadRequest {
  readonly id: string;
  readonly folder: string;
  /** Videos at once. */
  readonly parallel: number;
}

interface Tally {
  downloaded: number;
  present: number;
  failed: number;
  /** That came over the wire; what a run before had got is not among them. */
  bytes: number;
  readonly failures: { readonly id: string; readonly message: string }[];
}

/** Which dataset a folder holds: two in one folder would mix rows of the same id. */
const MARK = ".dream-dataset.json";
const PAGE_ROWS = 500;
const FAILURES_TOLD_MAX = 20;

export async function downloadDataset(customer: Customer, request: DownloadRequest): Promise<void> {
  const { folder } = request;
  await interruptible(
    async (signal) => {
      const { api, out } = customer;
      const dataset = await api.get(pathOf(request.id), DatasetReply, { signal });
      await prepareFolder(folder, dataset.id);
      const tally = await downloadVideos(customer, dataset, request, signal);
      const results = await downloadResults(customer, request, "jsonl", signal);
      const files = [
        await writeMetadata(folder, results, signal),
        results,
        await downloadResults(customer, request, "parquet", signal),
      ];

      // Rows may have ended meanwhile: what was there at the beginning is what this run was for.
      const complete = isAtRest(dataset) && tally.failed === 0;
      const { downloaded, present, failed, bytes, failures } = tally;
      const videos = { downloaded, present, failed, bytes };
      out.document({ dataset: dataset.id, state: dataset.state, folder, complete, videos, failures, files });
      if (!out.json) out.say(summary(dataset, folder, tally));
      for (const { id, message } of failures) process.stderr.write(`${id}: ${message}\n`);
      if (failed > 0) process.exitCode = EXIT.someFailed;
    },
    () => `Interrupted; the same command goes on where this one ended.`,
  );
}

/** Throws UserError where the folder holds another dataset. */
async function prepareFolder(folder: string, id: string): Promise<void> {
  const mark = join(folder, MARK);
  const text = await readFile(mark, "utf8").catch((error: unknown) => {
    if (errorCode(error) === "ENOENT") return null;
    throw cannotRead(mark, error);
  });
  if (text !== null && !text.includes(`"${id}"`)) {
    throw new UserError(`${folder} holds another dataset (${mark}); choose another folder with --out.`);
  }
  try {
    await mkdir(join(folder, "videos"), { recursive: true });
    await writeFile(mark, `${JSON.stringify({ dataset: id })}\n`);
  } catch (error) {
    throw new UserError(`Cannot write to ${folder}: ${errorCode(error) ?? "unwritable"}.`, { cause: error });
  }
}

async function downloadVideos(
  customer: Customer,
  dataset: DatasetReply,
  { folder, parallel }: DownloadRequest,
  signal: AbortSignal,
): Promise<Tally> {
  const tally: Tally = { downloaded: 0, present: 0, failed: 0, bytes: 0, failures: [] };
  const bar: Bar = createBar("  downloading {bar} {value}/{total} videos  {text}", dataset.rows.succeeded);
  const show = (): void => bar.update(tally.downloaded + tally.present + tally.failed, bytesText(tally.bytes));
  try {
    await inParallel(parallel, succeededRows(customer, dataset.id, signal), async (row) => {
      await take(row);
      show();
    });
  } finally {
    bar.stop();
  }
  return tally;

  async function take(row: RowReply): Promise<void> {
    const { id } = row;
    // What the API promises of a row's id; nothing else becomes a file name.
    if (id === null || !ROW_ID.test(id)) throw new Error(`row ${row.n} has an id that is no file name`);
    const file = join(folder, "videos", `${id}.mp4`);
    if (row.video_bytes !== null && (await sizeOf(file)) === row.video_bytes) {
      tally.present++;
      return;
    }
    try {
      await downloadVideo(customer, dataset.id, row, file, signal, (more) => {
        tally.bytes += more;
        show();
      });
      tally.downloaded++;
    } catch (error) {
      // A server that is away fails them all: that ends the run, and the next one goes on.
      if (!(error instanceof ApiProblem) || error.status === null) throw error;
      tally.failed++;
      if (tally.failures.length < FAILURES_TOLD_MAX) tally.failures.push({ id, message: error.message });
    }
  }
}

/** Links live for an hour and a page may take longer, so an expired one is asked for anew. */
async function downloadVideo(
  customer: Customer,
  datasetId: string,
  row: RowReply,
  file: string,
  signal: AbortSignal,
  onBytes: (bytes: number) => void,
): Promise<number> {
  const version = row.rollout_id ?? "video";
  const get = (url: string | null): Promise<number> => {
    if (url === null) throw new ApiProblem("its video is not stored any more", { status: 404, code: null });
    const options = { open: openLink(url), file, bytes: row.video_bytes, version, signal, onBytes };
    const rules = { repeatable: true, patienceMs: customer.patienceMs, onRetry: () => undefined, signal };
    return patiently(rules, () => download(options));
  };
  try {
    return await get(row.video_url);
  } catch (error) {
    if (!(error instanceof ApiProblem) || error.status !== 403) throw error;
    const query = { state: "succeeded", after: row.n - 1, limit: 1 };
    const { data } = await customer.api.get(`${pathOf(datasetId)}/rows`, RowPage, { query, signal });
    return get(data[0]?.n === row.n ? data[0].video_url : null);
  }
}

async function* succeededRows({ api }: Customer, id: string, signal: AbortSignal): AsyncGenerator<RowReply> {
  const pages = eachOf<RowReply>(
    (after, limit) => api.get(`${pathOf(id)}/rows`, RowPage, { query: { state: "succeeded", after, limit }, signal }),
    Infinity,
    PAGE_ROWS,
  );
  for await (const page of pages) yield* page;
}

/** Written anew each time: it tells the rows as they are now. */
async function downloadResults(
  { api, patienceMs }: Customer,
  { id, folder }: DownloadRequest,
  format: "jsonl" | "parquet",
  signal: AbortSignal,
): Promise<string> {
  const file = join(folder, `results.${format}`);
  await patiently({ repeatable: true, patienceMs, onRetry: () => undefined, signal }, () =>
    download({
      open: (_from, idle) =>
        api.open("GET", `${pathOf(id)}/results`, {
          query: { format, links: "false" }, // they would be stale in an hour, and go wherever the folder goes
          signal: idle,
          patienceMs: 0,
        }),
      file,
      bytes: null,
      version: "results",
      signal,
    }),
  );
  return file;
}

function summary(dataset: DatasetReply, folder: string, { downloaded, present, failed, bytes }: Tally): string {
  const { rows } = dataset;
  const missing = rows.total - rows.succeeded;
  const lines = [
    `${folder}: ${downloaded} videos downloaded (${bytesText(bytes)}), ${present} were there already${failed > 0 ? `, ${failed} could not be fetched` : ""}.`,
  ];
  if (missing > 0) lines.push(`${missing} of ${rows.total} rows have no video; results.jsonl says why.`);
  if (!isAtRest(dataset)) {
    lines.push(`The dataset is ${stateText(dataset)}: run this again later for the rest.`);
  }
  return lines.join("\n");
}

const pathOf = (id: string): string => `/v1/datasets/${encodeURIComponent(id)}`;
