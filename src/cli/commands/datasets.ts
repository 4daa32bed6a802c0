/** `dream-engine datasets …`: many rollouts as one thing, through the HTTP API. */
import { type Command, InvalidArgumentError } from "commander";

import { type Mils, milsFromUsd, usdText, mils } from "#contract/mils.ts";
import { DATASET_ROWS_PAGE_MAX } from "#contract/limits.ts";

import { DatasetPage, DatasetReply, type Page, RowPage, type RowReply } from "../api/replies.ts";
import {
  type CustomerOptions,
  endsUsageErrors,
  openCustomer,
  parseCount,
  parseNumber,
  parseSeed,
  withCustomer,
} from "../customer-options.ts";
import { createDataset, tellCreated } from "../datasets/create.ts";
import { downloadDataset } from "../datasets/download.ts";
import { badRowsText, datasetText, isAtRest, stateText } from "../datasets/show.ts";
import { watch, type WatchOptions } from "../datasets/watch.ts";
import { timeText } from "../output.ts";
import { listAll, type PagingOptions, withPaging } from "../paging.ts";
import { userPath } from "../user-path.ts";

interface HowToWatch {
  readonly throughPauses?: true;
  readonly contactSheet?: string | boolean;
}

interface CreateOptions extends CustomerOptions, HowToWatch {
  readonly name?: string;
  readonly model?: string;
  readonly onInvalid?: string;
  readonly budget?: Mils;
  readonly start: boolean;
  readonly seed?: bigint;
  readonly numSteps?: number;
  readonly guidance?: number;
  readonly prompt?: string;
  readonly webhookUrl?: string;
  readonly metadata?: Record<string, unknown>;
  readonly idempotencyKey?: string;
  readonly watch?: true;
}

const ROWS_DEFAULT = 100;
const PARALLEL_DEFAULT = 8;
const PARALLEL_MAX = 64;

export function addDatasets(program: Command): void {
  const datasets = endsUsageErrors(program.command("datasets")).description(
    "many rollouts as one, through the HTTP API",
  );
  withWatching(
    datasets
      .command("create <source>")
      .description("from a manifest (.jsonl), an archive (zip, tar, tar.gz) or a folder of <id>.png and <id>.npy")
      .option("--name <text>", "for people")
      .option("--model <slug>", "model")
      .option("--on-invalid <what>", "skip bad rows, or reject the dataset", parseOnInvalid)
      .option("--budget <usd>", "pause it before it spends more, such as 25.00", parseUsd)
      .option("--no-start", "check it and estimate its cost, and wait for datasets resume")
      .option("--seed <number>", "of rows that have none of their own", parseSeed)
      .option("--num-steps <number>", "the same", parseNumber)
      .option("--guidance <number>", "the same", parseNumber)
      .option("--prompt <text>", "the same")
      .option("--webhook-url <url>", "is told of its end")
      .option("--metadata <json>", "an object that goes with it", parseObject)
      .option("--idempotency-key <key>", "the same key gives the same dataset; default: a new one")
      .option("--watch", "then watch it, with what follows as of datasets watch"),
  ).action(create);
  withCustomer(
    withPaging(
      datasets.command("list").description("newest first").option("--state <state>", "running, paused, completed …"),
    ),
  ).action(list);
  withCustomer(datasets.command("show <id>").description("one dataset and its first bad rows")).action(show);
  withWatching(
    datasets
      .command("watch <id>")
      .description("a live table until it has ended or pauses; Ctrl-C stops the watching alone"),
  ).action(watchCommand);
  for (const [name, what] of [
    ["pause", "start no further rows; what runs ends"],
    ["cancel", "for good: running rows are stopped and refunded"],
    ["retry", "run failed, cancelled and expired rows again"],
  ] as const) {
    withCustomer(datasets.command(`${name} <id>`).description(what)).action(actOn(name));
  }
  withCustomer(
    datasets
      .command("resume <id>")
      .description("go on after a pause, or start one that was created with --no-start")
      .option("--budget <usd>", "a new budget for the whole dataset", parseUsd),
  ).action(actOn("resume"));
  withCustomer(
    withPaging(
      datasets
        .command("rows <id>")
        .description("its rows in order")
        .option("--state <state>", "invalid, pending, running, succeeded, failed, cancelled or expired"),
      ROWS_DEFAULT,
    ),
  ).action(rows);
  withCustomer(
    datasets
      .command("download <id>")
      .description("videos/<row_id>.mp4, metadata and results; run it again to go on, or for what has been added")
      .option("--out <folder>", "default: the dataset's id")
      .option("--parallel <n>", `videos at once, up to ${PARALLEL_MAX}`, parseParallel, PARALLEL_DEFAULT),
    { waits: true },
  ).action(download);
}

function withWatching(command: Command): Command {
  return withCustomer(
    command
      .option("--through-pauses", "go on when it pauses")
      .option("--contact-sheet <png>", "where the image of some rollouts goes; default <id>.png")
      .option("--no-contact-sheet", "make none"),
    { waits: true },
  );
}

async function create(source: string, options: CreateOptions): Promise<void> {
  const customer = await openCustomer(options);
  const params = {
    name: options.name,
    model: options.model,
    on_invalid: options.onInvalid,
    budget_mils: options.budget === undefined ? undefined : Number(options.budget),
    start: options.start,
    seed: options.seed,
    num_steps: options.numSteps,
    guidance: options.guidance,
    prompt: options.prompt,
    webhook_url: options.webhookUrl,
    metadata: options.metadata,
  };
  const dataset = await createDataset(customer, {
    path: userPath(source),
    params,
    idempotencyKey: options.idempotencyKey,
  });
  tellCreated(customer, dataset);
  // One document: with --watch it is the one of the end.
  if (options.watch) await watch(customer, dataset.id, watchOptionsOf(options));
  else customer.out.document(dataset);
}

async function list(options: CustomerOptions & PagingOptions & { state?: string }): Promise<void> {
  const { api, out } = await openCustomer(options);
  await listAll<DatasetReply>(out, {
    page: (after, limit): Promise<Page<DatasetReply>> =>
      api.get("/v1/datasets", DatasetPage, { query: { after, limit, state: options.state } }),
    wanted: options,
    heading: ["DATASET", "CREATED (UTC)", "STATE", "ROWS", "DONE", "SPENT", "NAME"],
    cells: ({ id, created, state, pause_reason, rows: { total }, progress, cost, name }) => [
      id,
      timeText(created),
      pause_reason === null ? state : `${state}: ${pause_reason}`,
      String(total),
      String(progress.done),
      `$${usdText(mils(cost.spent_mils))}`,
      name ?? "",
    ],
  });
}

async function show(id: string, options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  const dataset = await api.get(pathOf(id), DatasetReply);
  out.document(dataset);
  if (out.json) return;
  const { problems = [] } = dataset;
  out.say(datasetText(dataset) + (problems.length === 0 ? "" : `\n\n${badRowsText(problems)}`));
}

async function watchCommand(id: string, options: CustomerOptions & HowToWatch): Promise<void> {
  await watch(await openCustomer(options), id, watchOptionsOf(options));
}

const watchOptionsOf = ({ contactSheet, throughPauses }: HowToWatch): WatchOptions => ({
  contactSheet:
    contactSheet === false
      ? null
      : (dataset) => userPath(typeof contactSheet === "string" ? contactSheet : `${dataset.id}.png`),
  throughPauses: throughPauses === true,
});

/** A second pause or cancellation changes nothing; a second resume or retry may, so those are sent once. */
function actOn(action: "pause" | "resume" | "cancel" | "retry") {
  return async (id: string, options: CustomerOptions & { budget?: Mils }): Promise<void> => {
    const { api, out } = await openCustomer(options);
    const json = options.budget === undefined ? undefined : { budget_mils: Number(options.budget) };
    const dataset = await api.post(`${pathOf(id)}/${action}`, DatasetReply, {
      json,
      ...(action === "pause" || action === "cancel" ? { repeatable: true } : {}),
    });
    out.document(dataset);
    if (!out.json)
      out.say(`${dataset.id} is ${stateText(dataset)}${isAtRest(dataset) ? "" : `: datasets watch ${id}`}`);
  };
}

async function rows(id: string, options: CustomerOptions & PagingOptions & { state?: string }): Promise<void> {
  const { api, out } = await openCustomer(options);
  await listAll<RowReply>(out, {
    page: (after, limit): Promise<Page<RowReply>> =>
      api.get(`${pathOf(id)}/rows`, RowPage, { query: { after, limit, state: options.state } }),
    wanted: options,
    pageMax: DATASET_ROWS_PAGE_MAX,
    heading: ["LINE", "ROW", "STATE", "FRAMES", "COST", "WHY"],
    cells: ({ n, id: rowId, state, frames, charged_mils, refunded_mils, error }) => [
      String(n),
      rowId ?? "",
      state,
      frames === null ? "" : String(frames),
      `$${usdText(mils(charged_mils - refunded_mils))}`,
      error === null ? "" : `${error.code}: ${error.message}`,
    ],
  });
}

async function download(id: string, options: CustomerOptions & { out?: string; parallel: number }): Promise<void> {
  const customer = await openCustomer(options);
  await downloadDataset(customer, { id, folder: userPath(options.out ?? id), parallel: options.parallel });
}

const pathOf = (id: string): string => `/v1/datasets/${encodeURIComponent(id)}`;

function parseUsd(text: string): Mils {
  try {
    return milsFromUsd(text);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

function parseOnInvalid(text: string): string {
  if (text !== "skip" && text !== "reject") throw new InvalidArgumentError(`expected skip or reject, got ${text}`);
  return text;
}

function parseObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  } catch {
    // Told below.
  }
  throw new InvalidArgumentError('expected a JSON object such as {"robot": "a"}');
}

function parseParallel(text: string): number {
  const count = parseCount(text);
  if (count > PARALLEL_MAX) throw new InvalidArgumentError(`expected at most ${PARALLEL_MAX}, got ${count}`);
  return count;
}
