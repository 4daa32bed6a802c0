/**
 * The claim: what a row costs the control plane does not depend on how many rows its dataset has. Datasets of 1,000 to
 * 250,000 rows, each in a database of its own on one embedded PostgreSQL (fsync on), go through
 *
 *   ingest        POST /v1/datasets with the manifest, streamed to a gateway process whose memory is watched
 *   take up, prepare inputs, pay and queue, dispatch, settle, collect
 *                 the runner's, dispatcher's and settlement's own functions, in this process, on small cycles of rows at the
 *                 beginning, in the middle and at the end of each dataset; the rows between are passed over in SQL, with
 *                 the rollouts that they had, and a VACUUM after it. The engine is not there: its result is given at once.
 *   page of rows  GET /v1/datasets/{id}/rows?limit=1000 at the same three places
 *   results       GET /v1/datasets/{id}/results of all rows, as JSONL with a link a row
 *   finish        the runner's writing of JSONL and Parquet into the blob store
 *
 * The sizes take turns cycle by cycle, so that they meet the same machine. Judged is, of each step, the median over its
 * samples at the largest size ÷ that at the smallest: at most RATIO_MAX. A sample of the results is the time in which 1,000
 * of them come; ingest, and finish at the large sizes, happen once. Prints its tables, writes bench/results/dataset-rows.md, .json and .svg; ends with 1 when
 * the claim is missed. `npm run bench:dataset-rows`; BENCH=short stops at 10,000 rows.
 */
import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { createFsBlobs } from "#blobs/fs.ts";
import { openDatabase, type Parts } from "#cli/context.ts";
import { freePort } from "#cli/ports.ts";
import { mils } from "#contract/mils.ts";
import { finishDataset } from "#datasets/finish.ts";
import { bundleIdentity } from "#inputs/fingerprint.ts";
import { createKey } from "#keys/keys.ts";
import { loadManifests } from "#platform/bundles.ts";
import { readConfig } from "#platform/config.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { migrate } from "#platform/migrate.ts";
import { openQueues } from "#queue/open-queues.ts";
import { startProcessGroup } from "#test/chaos/process-group.ts";
import { npy } from "#test/support/npy.ts";

import { type Gateway, type Ingested, ingest, passOver, uploadOf } from "./dataset-fixture.ts";
import { type Cycles, startCycles, type Step, STEPS } from "./dataset-steps.ts";
import { describeMachine, median } from "./machine.ts";
import { linesSvg } from "./plot.ts";

const SHORT = process.env["BENCH"] === "short";
const SIZES = SHORT ? [1_000, 10_000] : [1_000, 10_000, 50_000, 250_000];
const PLACES = ["beginning", "middle", "end"] as const;
/** Cycles that are not counted: PostgreSQL plans a statement anew its first five times on a connection. */
const WARM_UP = 6;
/** At each place; a cycle is at most 32 rows, and all of them fit into the smallest dataset. */
const CYCLES = 7;
const CYCLE_ROWS = 32;
const PAGE = 1_000;
const PAGES_PER_PLACE = 5;
/** Whole passes over a dataset are repeated until they have gone over so many rows. */
const PASSED_ROWS_MIN = 10_000;
const RATIO_MAX = 1.5;
const MEMORY_MIB_MAX = 300;
const NEWLINE = 10;
const MODEL = "pusht-small";
type Figure = "ingest" | Step | "page of rows" | "results" | "finish";
const FIGURES: readonly Figure[] = ["ingest", ...STEPS, "page of rows", "results", "finish"];

interface Sized {
  readonly rows: number;
  readonly db: Database;
  readonly gateway: Gateway;
  readonly ingested: Ingested;
  readonly cycles: Cycles;
  /** Folder of its blob store. */
  readonly blobs: string;
  /** Milliseconds a row. */
  readonly samples: Map<Figure, number[]>;
}

const said: string[] = [];
/** To the terminal and into the report. */
function say(line: string): void {
  console.log(line);
  said.push(line);
}

async function main(): Promise<void> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-rows-"));
  const parts: Parts = [];
  const log = createLog("bench", "warn");
  try {
    const { db, url } = await openDatabase(readConfig({ DATA_DIR: dataDir }), log, parts);
    const all: Sized[] = [];
    for (const rows of SIZES) all.push(await startSized(rows, { db, url, dataDir, parts }));
    await measureCycles(all);
    for (const sized of all) await measureWhole(sized);
    await report(all);
  } finally {
    await stopAll(parts, log);
    await rm(dataDir, { recursive: true, force: true });
  }
}

async function startSized(
  rows: number,
  around: { readonly db: Database; readonly url: string; readonly dataDir: string; readonly parts: Parts },
): Promise<Sized> {
  const log = createLog("bench", "warn");
  const name = `rows_${rows}`;
  await around.db.query(`CREATE DATABASE ${name}`);
  const url = new URL(around.url);
  url.pathname = name;
  await migrate(url.href, log);
  const queues = await openQueues({ redis_url: undefined, database_url: url.href, migrate: true, log });
  await queues.stop();
  const db = createDatabase({ url: url.href, log });
  around.parts.push([name, db]);
  const folder = join(around.dataDir, name);
  const blobs = join(folder, "blobs");
  await mkdir(blobs, { recursive: true });
  const group = await startProcessGroup({
    env: { DATABASE_URL: url.href, DATA_DIR: folder, BLOB_URL: `file://${blobs}`, LOG_LEVEL: "warn" },
    port: await freePort(),
    model: MODEL,
    logFile: join(folder, "log"),
    roles: ["gateway"],
  });
  around.parts.push([`gateway of ${name}`, group]);
  const { api_key: apiKey } = await createKey(
    db,
    {
      customer: "bench@example.com",
      initial_credits: mils(10n ** 12n),
      rate_per_s: 10_000,
      burst: 10_000, // the rate limit is not what is measured
    },
    randomBytes,
  );
  const gateway = { url: group.baseUrl, pid: group.pids().get("gateway") ?? 0, apiKey };
  const uploads = await uploadInputs(gateway);
  const ingested = await ingest(gateway, rows, uploads);
  process.stderr.write(
    `  ${rows} rows in ${ingested.seconds.toFixed(1)} s, the gateway at most ${ingested.peak_mib?.toFixed(0)} MiB ` +
      `(${ingested.idle_mib?.toFixed(0)} before)\n`,
  );
  const [manifest] = (await loadManifests("models")).filter(({ slug }) => slug === MODEL);
  if (!manifest) throw new Error(`no bundle ${MODEL}`);
  const model = { manifest, identity: bundleIdentity(manifest) };
  const cycles = await startCycles({ db, id: ingested.id, blobs, model, log });
  around.parts.push([`cycles of ${name}`, cycles]);
  const samples = new Map<Figure, number[]>([["ingest", [(ingested.seconds * 1000) / rows]]]);
  return { rows, db, gateway, ingested, cycles, blobs, samples };
}

async function uploadInputs(gateway: Gateway): Promise<{ readonly frame: string; readonly actions: string }> {
  const example = join("models", MODEL, "example");
  const values = npy.read(await readFile(join(example, "actions.npy")));
  return {
    frame: await uploadOf(gateway, await readFile(join(example, "start_frame.png"))),
    actions: await uploadOf(gateway, npy.write(values.subarray(0, 24), [12, 2])),
  };
}

function note({ samples }: Sized, figure: Figure, msPerRow: number): void {
  samples.set(figure, [...(samples.get(figure) ?? []), msPerRow]);
}

async function measureCycles(all: readonly Sized[]): Promise<void> {
  for (const place of PLACES) {
    for (const sized of all) await passOver(sized.db, sized.ingested.id, startOf(place, sized.rows) - 1);
    const warmUp = place === "beginning" ? WARM_UP : 1;
    for (let cycle = 0; cycle < warmUp + CYCLES; cycle++) {
      for (const sized of rotated(all, cycle)) {
        const times = await sized.cycles.run();
        if (cycle < warmUp) continue;
        for (const step of STEPS) note(sized, step, times[step]);
      }
    }
    for (let page = 0; page <= PAGES_PER_PLACE; page++) {
      for (const sized of rotated(all, page)) {
        const ms = await readPage(sized, Math.min(startOf(place, sized.rows) - 1, sized.rows - PAGE));
        if (page > 0) note(sized, "page of rows", ms / PAGE);
      }
    }
    process.stderr.write(`  cycles at the ${place}: done\n`);
  }
}

/** Each of them goes first, second, … equally often. */
const rotated = <T>(all: readonly T[], by: number): T[] => all.map((_, at) => all[(at + by) % all.length] as T); // within

/** The row at which the cycles of a place begin; those of all places fit behind one another into the smallest. */
function startOf(place: (typeof PLACES)[number], rows: number): number {
  const needed = CYCLE_ROWS * (CYCLES + 1);
  if (place === "beginning") return 1;
  return place === "middle" ? Math.floor(rows / 2) - needed / 2 : rows - needed + 1;
}

async function readPage({ gateway, ingested }: Sized, after: number): Promise<number> {
  const startedAt = performance.now();
  const { status, body } = await get(gateway, `/v1/datasets/${ingested.id}/rows?limit=${PAGE}&after=${after}`);
  const ms = performance.now() - startedAt;
  const { data } = JSON.parse(body) as { data: unknown[] };
  if (status !== 200 || data.length !== PAGE) throw new Error(`a page of rows: ${status}, ${data.length} rows`);
  return ms;
}

/** Whole passes, in the end: everything has happened to every row. */
async function measureWhole(sized: Sized): Promise<void> {
  const { db, ingested, rows, blobs } = sized;
  await passOver(db, ingested.id, rows);
  const parts = { db, blobs: createFsBlobs(blobs), workDir: tmpdir() };
  for (let passed = 0; passed < PASSED_ROWS_MIN; passed += rows) await readResults(sized);
  for (let passed = 0; passed < PASSED_ROWS_MIN; passed += rows) {
    await db.query("UPDATE datasets SET state = 'running', finished_at = NULL, runner_id = 'bench' WHERE id = $1", [
      ingested.id,
    ]);
    const startedAt = performance.now();
    const turn = { dataset_id: ingested.id, name: "bench" };
    const over = await finishDataset(turn, parts, new AbortController().signal);
    note(sized, "finish", (performance.now() - startedAt) / rows);
    if (!over) throw new Error("the dataset did not end: rows are left");
  }
  process.stderr.write(`  ${rows} rows: results and finish done\n`);
}

/** A sample every PAGE rows: how long they took to come. */
async function readResults(sized: Sized): Promise<void> {
  const { gateway, ingested, rows } = sized;
  let since = performance.now();
  const headers = { authorization: `Bearer ${gateway.apiKey}` };
  const answer = await fetch(`${gateway.url}/v1/datasets/${ingested.id}/results?format=jsonl`, { headers });
  let lines = 0;
  let noted = 0;
  for await (const chunk of answer.body ?? []) {
    for (const byte of chunk) if (byte === NEWLINE) lines += 1;
    if (lines - noted < PAGE) continue;
    const now = performance.now();
    note(sized, "results", (now - since) / (lines - noted));
    [since, noted] = [now, lines];
  }
  if (answer.status !== 200 || lines !== rows) throw new Error(`results: ${answer.status}, ${lines} lines of ${rows}`);
}

async function get(gateway: Gateway, path: string): Promise<{ readonly status: number; readonly body: string }> {
  const answer = await fetch(gateway.url + path, { headers: { authorization: `Bearer ${gateway.apiKey}` } });
  return { status: answer.status, body: await answer.text() };
}

/** Milliseconds a row. */
const costOf = ({ samples }: Sized, figure: Figure): number => median(samples.get(figure) ?? []);

async function report(all: readonly Sized[]): Promise<void> {
  const missed: string[] = [];
  const machine = describeMachine();
  const [smallest, largest] = [all[0], all.at(-1)];
  if (!smallest || !largest) throw new Error("no sizes");
  said.push(
    "# What a row of a dataset costs",
    "",
    `Made by \`npm run bench:dataset-rows\` (bench/dataset-rows.ts says what is measured) on ${machine.cores} cores of ` +
      `${machine.cpu}, Node ${machine.node}, with the embedded PostgreSQL and the blob store in files. Ratios count.`,
  );
  const sizes = all.map(({ rows }) => rows.toLocaleString("en"));
  say("\n## Milliseconds a row, by the number of rows\n");
  say(`| step | ${sizes.join(" | ")} | largest ÷ smallest | wanted |`);
  say(`|---|${all.map(() => "---|").join("")}---|---|`);
  for (const figure of FIGURES) {
    const ratio = costOf(largest, figure) / costOf(smallest, figure);
    const costs = all.map((sized) => costOf(sized, figure).toFixed(3));
    say(`| ${figure} | ${costs.join(" | ")} | ${ratio.toFixed(2)} | ≤ ${RATIO_MAX.toFixed(1)} |`);
    if (ratio > RATIO_MAX) missed.push(`${figure}: ${ratio.toFixed(2)} times the cost at ${smallest.rows} rows`);
  }
  say(
    `\nTake up to collect and a page of rows: medians over ${PLACES.length * CYCLES} cycles (${PLACES.length * PAGES_PER_PLACE} pages) at the ` +
      "beginning, in the middle and at the end. Results: the median of the times in which 1,000 of them come. Ingest happens once, " +
      "and so does finish at the large sizes.",
  );
  say("\n![Cost per row](dataset-rows.svg)");
  say("\n## The gateway's memory while a manifest comes in\n");
  say("| rows | manifest | time | resident before | at most | above | wanted |");
  say("|---|---|---|---|---|---|---|");
  for (const { rows, ingested } of all) {
    const { bytes, seconds, idle_mib, peak_mib } = ingested;
    const above = idle_mib === null || peak_mib === null ? null : peak_mib - idle_mib;
    const cells = [idle_mib, peak_mib, above].map((mib) => (mib === null ? "" : `${mib.toFixed(0)} MiB`));
    say(
      `| ${rows.toLocaleString("en")} | ${(bytes / 1e6).toFixed(1)} MB | ${seconds.toFixed(1)} s | ${cells.join(" | ")} | < ${MEMORY_MIB_MAX} MiB |`,
    );
    if (above !== null && above >= MEMORY_MIB_MAX) missed.push(`memory at ${rows} rows: ${above.toFixed(0)} MiB`);
  }

  await mkdir("bench/results", { recursive: true });
  await writeFile("bench/results/dataset-rows.md", `${said.join("\n")}\n`);
  await writeFile(
    "bench/results/dataset-rows.svg",
    linesSvg({
      title: "Cost per row of each control-plane step, beside that at the smallest dataset",
      xLabel: "rows of the dataset",
      yLabel: "times the cost at " + (sizes[0] ?? "") + " rows",
      limit: { value: RATIO_MAX, label: `fails above ${RATIO_MAX}` },
      lines: FIGURES.map((figure) => ({
        name: figure,
        points: all.map((sized) => [sized.rows, costOf(sized, figure) / costOf(smallest, figure)] as const),
      })),
    }),
  );
  const result = {
    made_by: "npm run bench:dataset-rows",
    machine,
    ratio_max: RATIO_MAX,
    sizes: all.map((sized) => ({
      rows: sized.rows,
      ms_per_row: Object.fromEntries(FIGURES.map((figure) => [figure, costOf(sized, figure)])),
      samples: Object.fromEntries(sized.samples),
      ingest: sized.ingested,
    })),
    missed,
  };
  await writeFile("bench/results/dataset-rows.json", `${JSON.stringify(result, null, 2)}\n`);
  for (const miss of missed) console.error(`missed: ${miss}`);
  if (missed.length > 0) process.exitCode = 1;
}

await main();
