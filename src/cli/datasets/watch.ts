/** `datasets watch`: looks at a dataset until it rests, and shows at the end what was dreamed. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { readConfig } from "#platform/config.ts";

import { patiently } from "../api/client.ts";
import { download, openLink } from "../api/download.ts";
import { DatasetReply, RowPage } from "../api/replies.ts";
import { contactSheet, type SheetRow } from "../contact-sheet.ts";
import type { Customer } from "../customer-options.ts";
import { interruptible } from "../interrupt.ts";
import { createLiveTable, createPlainLines } from "./live-table.ts";
import { datasetText, exitCodeOf, isAtRest } from "./show.ts";
import { type ReadSucceeded, someRows } from "./some-rows.ts";

export interface WatchOptions {
  /** Names the file of a dataset's contact sheet; null: none is made. */
  readonly contactSheet: ((dataset: DatasetReply) => string) | null;
  /** Go on looking at a paused one. */
  readonly throughPauses: boolean;
}

const LOOK_EVERY_MS = 1_000;

/** Sets the process's exit code by how the dataset ended. */
export async function watch(customer: Customer, id: string, options: WatchOptions): Promise<void> {
  const { out } = customer;
  const table = process.stderr.isTTY ? createLiveTable(process.stderr) : createPlainLines(out.say);
  await interruptible(
    async (signal) => {
      const dataset = await untilAtRest(customer, id, options.throughPauses, table.show, signal);
      table.end();
      const sheet = await sheetOf(customer, dataset, options.contactSheet, signal);
      out.document({ ...dataset, contact_sheet: sheet });
      if (!out.json) out.say(datasetText(dataset) + (sheet === null ? "" : `\nSheet     ${sheet}`));
      process.exitCode = exitCodeOf(dataset);
    },
    () => `Stopped watching; the dataset goes on: datasets watch ${id}`,
  );
}

async function untilAtRest(
  { api }: Customer,
  id: string,
  throughPauses: boolean,
  show: (dataset: DatasetReply) => void,
  signal: AbortSignal,
): Promise<DatasetReply> {
  for (;;) {
    const dataset = await api.get(`/v1/datasets/${encodeURIComponent(id)}`, DatasetReply, { signal });
    show(dataset);
    if (isAtRest(dataset) && !(throughPauses && dataset.state === "paused")) return dataset;
    await delay(LOOK_EVERY_MS, undefined, { signal });
  }
}

/** The sheet's file; null where there is nothing to show. */
async function sheetOf(
  customer: Customer,
  dataset: DatasetReply,
  wanted: WatchOptions["contactSheet"],
  signal: AbortSignal,
): Promise<string | null> {
  if (wanted === null || dataset.rows.succeeded === 0) return null;
  const file = wanted(dataset);
  const folder = await mkdtemp(join(tmpdir(), "dream-sheet-"));
  try {
    const rows: SheetRow[] = [];
    const read: ReadSucceeded = (after, limit) =>
      customer.api.get(`/v1/datasets/${dataset.id}/rows`, RowPage, {
        query: { state: "succeeded", after, limit },
        signal,
      });
    for (const [index, row] of (await someRows(read, dataset.rows.total)).entries()) {
      const { video_url: url, frames } = row;
      if (url === null || frames === null) continue;
      const video = join(folder, `${index}.mp4`);
      await patiently({ repeatable: true, patienceMs: customer.patienceMs, onRetry: () => undefined, signal }, () =>
        download({ open: openLink(url), file: video, bytes: row.video_bytes, version: "sheet", signal }),
      );
      rows.push({ label: row.id ?? `row ${row.n}`, video, frames });
    }
    if (rows.length === 0) return null;
    await contactSheet(readConfig(process.env).FFMPEG_PATH, rows, file);
    return file;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
