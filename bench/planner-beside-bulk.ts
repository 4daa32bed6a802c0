/**
 * The claim: a bulk customer never hurts a planner. On the deployment of docker-compose.yml, process by process
 * (test/support/topology.ts: Redis, PostgreSQL on disk, VersityGW, two gateways, two schedulers, two settlement workers,
 * inference workers on the reference bundle), a planner asks at a steady rate, whether answers come or not, for
 *
 *   SECONDS alone; SECONDS beside a customer who has BULK rollouts queued when they begin; SECONDS alone again, after that
 *   customer has called off what is left of them.
 *
 * Judged is the planner's P99 beside them ÷ its P99 in both times alone: at most RATIO_MAX. A latency counts from when a request
 * was due to the last byte of its mp4. Where the time goes is read from the rollouts' own rows, as means and P99s. In the end the
 * books are verified, and what the bulk customer paid for is compared with what it got.
 *
 * Environment: SECONDS, BULK, PER_S, WORKERS (default: a core less than there are, for everything else), BLOBS (versitygw,
 * stand-in, folder; default: VersityGW where there is one), BENCH=short, RESULTS (folder). Writes planner-beside-bulk.md and .json to bench/results; ends with 1 when the claim is missed.
 * `npm run bench:planner-beside-bulk`
 */
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { milsFromUsd } from "#contract/mils.ts";
import { type CreatedKey, createKey, limitKey } from "#keys/keys.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { npy } from "#test/support/npy.ts";
import { startTopology, type Topology } from "#test/support/topology.ts";
import { hasVersityGw } from "#test/support/versitygw.ts";

import { openLoop, percentile } from "./peers/load.ts";
import { progress } from "./peers/measure.ts";
import { type Stages, stagesOf } from "./served-system.ts";
import { numberOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const SECONDS = numberOf("SECONDS", SHORT ? 15 : 150);
const BULK = numberOf("BULK", SHORT ? 60 : 5_000);
const PER_S = numberOf("PER_S", 2);
const WORKERS = numberOf("WORKERS", Math.max(1, availableParallelism() - 1));
const STORES = {
  versitygw: "VersityGW",
  // Python, which takes a good part of a core of the machine that is measured.
  "stand-in": "an S3 stand-in that answers one request after the other",
  folder: "a folder",
} as const;
const BLOBS = await readStore(process.env["BLOBS"]);
const RATIO_MAX = 1.5;
const MODEL = "pusht-small";
/** A look ahead of one chunk. */
const PLANNER_ACTIONS = 12;
/** The canonical rollout: 49 frames. */
const BULK_ACTIONS = 48;
const WARM_UP = 10;
/** Of the bulk customer, while it submits and calls off. */
const CALLERS = 8;
const CALL_TIMEOUT_MS = 120_000;
const GRANTED = milsFromUsd("10000");
const PRICE_MILS = 5n;

interface Phase {
  readonly name: string;
  readonly asked: number;
  readonly failed: number;
  readonly latencies_ms: readonly number[];
  readonly stages: Stages;
  /** Each by itself: they do not add up. */
  readonly stages_p99: Stages;
  /** Bulk rollouts that had not ended, when the phase began and when it was over. */
  readonly bulk_left: readonly [begin: number, end: number];
  /** Bulk rollouts that succeeded a second. */
  readonly bulk_per_s: number;
}

async function readStore(wanted: string | undefined): Promise<keyof typeof STORES> {
  if (wanted === undefined) return (await hasVersityGw()) ? "versitygw" : "stand-in";
  if (wanted === "versitygw" || wanted === "stand-in" || wanted === "folder") return wanted;
  throw new Error(`BLOBS: expected ${Object.keys(STORES).join(", ")}, got ${JSON.stringify(wanted)}`);
}

async function main(): Promise<void> {
  const logFile = join(await mkdtemp(join(tmpdir(), "dream-bench-")), "topology.log");
  progress(`processes write to ${logFile}`);
  // Elsewhere an engine has a machine or a device of its own; here one core is left for everything else.
  const threads = Math.max(1, Math.floor((availableParallelism() - 1) / WORKERS));
  const folder = join(dirname(logFile), "blobs");
  const settings = (service: string): Record<string, string> => ({
    ...(service === "worker" && { ORT_THREADS: String(threads) }),
    ...(BLOBS === "folder" && { BLOB_URL: `file://${folder}` }),
  });
  const s3 = BLOBS === "folder" ? "stand-in" : BLOBS;
  const topology = await startTopology({ model: MODEL, workers: WORKERS, logFile, s3, settings });
  try {
    const { db } = topology;
    const [planner, bulk] = [await newCustomer(db, "planner"), await newCustomer(db, "bulk")];
    const ask = await plannerOf(topology, planner);
    for (let i = 0; i < WARM_UP; i++) await ask(i);

    const during = (name: string) => measure(name, ask, topology, planner, bulk);
    const alone = await during("alone");
    await submitUntilQueued(topology, bulk);
    const beside = await during(`beside ${BULK} queued bulk rollouts`);
    await callOffTheRest(topology, bulk);
    const again = await during("alone again");
    await report([alone, beside, again], await checkBooks(db, bulk));
  } finally {
    await topology.stop();
  }
}

async function newCustomer(db: Database, name: string): Promise<CreatedKey> {
  const key = await createKey(db, { customer: `${name}@example.com`, initial_credits: GRANTED }, randomBytes);
  // The rate limit is not what is measured.
  await limitKey(db, key.key_id, { rate_per_s: 10_000, burst: 10_000 });
  return key;
}

async function measure(
  name: string,
  ask: (number: number) => Promise<void>,
  { db }: Topology,
  planner: CreatedKey,
  bulk: CreatedKey,
): Promise<Phase> {
  progress(`${name}: ${SECONDS} s at ${PER_S} a second`);
  const arrivals = Array.from({ length: Math.round(SECONDS * PER_S) }, (_, i) => (i / PER_S) * 1_000);
  const [left, done] = [await countOf(db, bulk, UNFINISHED), await countOf(db, bulk, SUCCEEDED)];
  const startedAt = performance.now();
  const { latenciesMs, failed } = await openLoop(ask, arrivals);
  const seconds = (performance.now() - startedAt) / 1_000;
  const phase = {
    name,
    asked: arrivals.length,
    failed,
    latencies_ms: latenciesMs.map((ms) => Math.round(ms)),
    stages: await stagesOf(db, { customer: planner.customer_id, latest: arrivals.length }),
    stages_p99: await stagesOf(db, { customer: planner.customer_id, latest: arrivals.length, percent: 99 }),
    bulk_left: [left, await countOf(db, bulk, UNFINISHED)] as const,
    bulk_per_s: ((await countOf(db, bulk, SUCCEEDED)) - done) / seconds,
  };
  progress(
    `${name}: P50 ${percentile(latenciesMs, 50).toFixed(0)} ms, P99 ${percentile(latenciesMs, 99).toFixed(0)} ms`,
  );
  return phase;
}

/** One decision: a rollout that somebody waits for, at one gateway and the other in turn, to the last byte of its mp4. */
async function plannerOf({ gateways }: Topology, key: CreatedKey): Promise<(number: number) => Promise<void>> {
  const inputs = await readInputs(PLANNER_ACTIONS);
  let seed = 0;
  return async (number) => {
    const form = formOf(inputs, "frame");
    form.set("seed", String((seed += 1)));
    await call(`${gateways[number % 2]}/v1/predict`, key, form);
  };
}

async function submitUntilQueued({ db, gateways }: Topology, key: CreatedKey): Promise<void> {
  progress(`queueing ${BULK} bulk rollouts`);
  const inputs = await readInputs(BULK_ACTIONS);
  let seed = 0;
  await inParallel(async () => {
    while ((await countOf(db, key, UNFINISHED)) < BULK) {
      for (let i = 0; i < 20; i++) {
        const form = formOf(inputs, "start_frame");
        form.set("params", JSON.stringify({ mode: "async", seed: (seed += 1) }));
        await call(`${gateways[seed % 2]}/v1/rollouts`, key, form);
      }
    }
  });
}

async function callOffTheRest({ db, gateways }: Topology, key: CreatedKey): Promise<void> {
  const left = await db.query<{ id: string }>(`SELECT id FROM rollouts WHERE customer_id = $1 AND ${UNFINISHED}`, [
    key.customer_id,
  ]);
  progress(`calling off ${left.length}`);
  await inParallel(async () => {
    for (let next = left.pop(); next; next = left.pop()) {
      await call(`${gateways[left.length % 2]}/v1/rollouts/${next.id}/cancel`, key, null, [200, 409]); // 409: it has just ended
    }
  });
  while ((await countOf(db, key, UNFINISHED)) > 0) await new Promise((resolve) => setTimeout(resolve, 200));
}

async function inParallel(work: () => Promise<void>): Promise<void> {
  await Promise.all(Array.from({ length: CALLERS }, work));
}

async function call(
  url: string,
  { api_key }: CreatedKey,
  body: FormData | null,
  accepted: readonly number[] = [200, 202],
): Promise<void> {
  const response = await fetch(url, {
    method: "POST",
    body,
    headers: { authorization: `Bearer ${api_key}` },
    signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
  });
  const answer = await response.arrayBuffer();
  if (!accepted.includes(response.status)) {
    throw new Error(`${url} answered ${response.status}: ${Buffer.from(answer).toString().slice(0, 200)}`);
  }
}

const UNFINISHED = "status IN ('queued', 'dispatched')";
const SUCCEEDED = "status = 'succeeded'";

async function countOf(db: Database, { customer_id }: CreatedKey, condition: string): Promise<number> {
  const [row] = await db.query<{ count: number }>(
    `SELECT count(*)::int AS count FROM rollouts WHERE customer_id = $1 AND ${condition}`,
    [customer_id],
  );
  return row?.count ?? 0;
}

interface Inputs {
  readonly frame: Buffer;
  readonly actions: Uint8Array;
}

async function readInputs(actions: number): Promise<Inputs> {
  const example = join("models", MODEL, "example");
  const values = npy.read(await readFile(join(example, "actions.npy")));
  return {
    frame: await readFile(join(example, "start_frame.png")),
    actions: npy.write(values.subarray(0, 2 * actions), [actions, 2]),
  };
}

function formOf({ frame, actions }: Inputs, frameField: "frame" | "start_frame"): FormData {
  const form = new FormData();
  form.set(frameField, new Blob([new Uint8Array(frame)]), "frame.png");
  form.set("actions", new Blob([new Uint8Array(actions)]), "actions.npy");
  return form;
}

/** What the bulk customer's books say; throws where they do not balance. */
async function checkBooks(db: Database, bulk: CreatedKey) {
  const problems = await verifyLedger(db);
  if (problems.length > 0) throw new Error(`the books do not balance:\n${problems.join("\n")}`);
  const succeeded = await countOf(db, bulk, SUCCEEDED);
  const cancelled = await countOf(db, bulk, "status = 'cancelled' AND refunded_mils = charge_mils");
  const others = (await countOf(db, bulk, "true")) - succeeded - cancelled;
  const paid_mils = GRANTED - (await balanceOf(db, bulk.customer_id));
  if (others > 0 || paid_mils !== BigInt(succeeded * (BULK_ACTIONS + 1)) * PRICE_MILS) {
    throw new Error(
      `bulk: ${succeeded} succeeded, ${cancelled} called off, ${others} else, and ${paid_mils} mils were paid`,
    );
  }
  return { succeeded, cancelled, paid_mils: Number(paid_mils) };
}

const cells = (values: readonly (string | number)[]): string => `| ${values.join(" | ")} |`;

async function report(phases: readonly Phase[], books: Awaited<ReturnType<typeof checkBooks>>): Promise<void> {
  const [alone, beside, again] = phases;
  if (!alone || !beside || !again) throw new Error("expected three phases");
  const both = [...alone.latencies_ms, ...again.latencies_ms].toSorted((a, b) => a - b);
  const baseline = percentile(both, 99);
  const ratio = percentile(beside.latencies_ms, 99) / baseline;
  const failed = phases.reduce((sum, phase) => sum + phase.failed, 0);
  const stillQueued = beside.bulk_left[1] > 0;
  const holds = ratio <= RATIO_MAX && failed === 0 && stillQueued;
  const stageNames = Object.keys(alone.stages) as (keyof Stages)[]; // of that very object
  await writeReport({
    name: "planner-beside-bulk",
    title: "A planner beside a bulk customer",
    how:
      `A planner asks for ${PLANNER_ACTIONS} actions ${PER_S} times a second, bulk rollouts have ${BULK_ACTIONS}, ${SECONDS} s in each row, on the processes of docker-compose.yml ` +
      `with ${WORKERS} inference worker${WORKERS === 1 ? "" : "s"}, a core left for everything else; blobs in ${STORES[BLOBS]}; the load generator and all of that share the machine.`,
    lines: [
      `P99 beside bulk ÷ P99 alone: **${ratio.toFixed(2)}** (at most ${RATIO_MAX}: ${holds ? "holds" : "MISSED"})`,
      "",
      cells(["the planner", "asked", "failed", "P50", "P90", "P99", "most", "bulk rollouts left", "bulk/s"]),
      cells(Array.from({ length: 9 }, () => "---")),
      ...phases.map(({ name, asked, failed, latencies_ms: ms, bulk_left, bulk_per_s }) =>
        cells([
          name,
          asked,
          failed,
          ...[50, 90, 99, 100].map((percent) => `${percentile(ms, percent)} ms`),
          bulk_left.join(" → "),
          bulk_per_s.toFixed(2),
        ]),
      ),
      "",
      "Where the planner's time goes, in milliseconds: means, and the P99 of each stage by itself:",
      "",
      cells(["", ...stageNames.map((name) => name.replace(/_ms$/, "").replaceAll("_", " "))]),
      cells(["---", ...stageNames.map(() => "---")]),
      ...phases.map(({ name, stages, stages_p99 }) =>
        cells([name, ...stageNames.map((stage) => `${stages[stage].toFixed(0)}, ${stages_p99[stage].toFixed(0)}`)]),
      ),
      "",
      `The books balance: of the bulk customer's rollouts ${books.succeeded} succeeded and were paid ($${(books.paid_mils / 10_000).toFixed(4)}), ` +
        `${books.cancelled} were called off and refunded in full.`,
    ],
    figures: {
      seconds: SECONDS,
      per_s: PER_S,
      workers: WORKERS,
      blobs: BLOBS,
      ratio,
      ratio_max: RATIO_MAX,
      holds,
      books,
      phases,
    },
  });
  if (!holds) process.exitCode = 1;
}

await main();
