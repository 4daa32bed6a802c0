/**
 * What the control plane does with an engine that returns at once: rollouts a second through the real processes, and
 * beside them plain BullMQ on the same servers, in alternating rounds of one run.
 *
 *   rollouts      POST /v1/rollouts (async) → debit → dispatch → BullMQ → a worker that answers at once → BullMQ →
 *                 settlement → GET /v1/rollouts/{id}?wait= says succeeded. Gateway, scheduler, settlement and worker are
 *                 processes of their own, as in a deployment; the callers are in this one.
 *   plain BullMQ  jobs of the same size added here and processed by a worker process that does nothing: one hop, where a
 *                 rollout makes two, and no money, no HTTP, no inputs
 *
 * Ratios are medians over the rounds of one round's own ratio. Below: where a rollout's time goes (one caller and
 * saturated), and whose processor time it is. Prints its tables, writes bench/results/control-plane.md and .json.
 * `npm run bench:control-plane`; BENCH=short for a look.
 */
import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { openDatabase, type Parts } from "#cli/context.ts";
import { freePort } from "#cli/ports.ts";
import { mils } from "#contract/mils.ts";
import { createKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { readConfig } from "#platform/config.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { migrate } from "#platform/migrate.ts";
import { openQueues } from "#queue/open-queues.ts";
import { startProcessGroup } from "#test/chaos/process-group.ts";
import { ensureRedis } from "#test/support/redis-server.ts";

import { createAsyncClient, type Times } from "./async-client.ts";
import { cpuMsOf, type CpuTimes, postgresCpu, spentBetween } from "./cpu.ts";
import { describeMachine, median } from "./machine.ts";
import { startPlainBullmq } from "./plain-bullmq.ts";

const SHORT = process.env["BENCH"] === "short";
const ROUNDS = SHORT ? 2 : 7;
const PER_ROUND = { rollouts: SHORT ? 100 : 400, plain: SHORT ? 300 : 1_000, alone: SHORT ? 10 : 40 } as const;
const CALLERS = 64;
const CUSTOMERS = 4;
const MODEL = "pusht-small";
const ROLES = ["gateway", "scheduler", "settlement", "instant-a"] as const;
const BACKENDS = ["PostgreSQL", "Redis"] as const;
type Backend = (typeof BACKENDS)[number];

/** Means in milliseconds, in the order in which a rollout goes through them. */
interface Stages {
  /** The POST, from the client's side: HTTP, form, frame, blobs, debit. */
  readonly accepted_ms: number;
  readonly until_dispatched_ms: number;
  /** Two queue hops, the worker's blobs and the settlement. */
  readonly until_settled_ms: number;
  /** From the commit of its end to the client's knowing of it. */
  readonly until_told_ms: number;
  readonly whole_ms: number;
}

interface Under {
  readonly backend: Backend;
  readonly db: Database;
  rollouts(count: number, callers: number): Promise<{ readonly perSecond: number; readonly stages: Stages }>;
  plain(count: number): Promise<number>;
  cpu(): Promise<CpuTimes>;
}

interface Measured {
  readonly backend: Backend;
  readonly rollouts: number[];
  readonly plain: number[];
  readonly alone: Stages[];
  readonly saturated: Stages[];
  /** Milliseconds a rollout at saturation, a map a round. */
  readonly cpu: CpuTimes[];
}

const said: string[] = [];
/** To the terminal and into the report. */
function say(line: string): void {
  console.log(line);
  said.push(line);
}

async function main(): Promise<void> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-control-"));
  const parts: Parts = [];
  const log = createLog("bench", "warn");
  try {
    const redis = await ensureRedis();
    parts.push(["redis", redis]);
    const { db, url } = await openDatabase(readConfig({ DATA_DIR: dataDir }), log, parts);
    const under: Under[] = [];
    for (const backend of BACKENDS) {
      under.push(await startUnder(backend, { db, url, dataDir, redisUrl: redis.url, parts }));
    }
    const measured = await measure(under);
    const problems = (await Promise.all(under.map((each) => verifyLedger(each.db)))).flat();
    await report(measured, problems.map(String));
  } finally {
    await stopAll(parts, log);
    await rm(dataDir, { recursive: true, force: true });
  }
}

async function startUnder(
  backend: Backend,
  around: {
    readonly db: Database;
    readonly url: string;
    readonly dataDir: string;
    readonly redisUrl: string;
    readonly parts: Parts;
  },
): Promise<Under> {
  const { parts, dataDir } = around;
  const log = createLog("bench", "warn");
  const name = `bench_${backend.toLowerCase()}`;
  await around.db.query(`CREATE DATABASE ${name}`);
  const url = new URL(around.url);
  url.pathname = name;
  await migrate(url.href, log);
  const redisUrl = backend === "Redis" ? around.redisUrl : null;
  const env: Record<string, string> = {
    DATABASE_URL: url.href,
    ...(redisUrl === null ? {} : { REDIS_URL: redisUrl }),
    DATA_DIR: join(dataDir, name),
    BLOB_URL: `file://${dataDir}/${name}/blobs`,
    LOG_LEVEL: "warn",
  };
  const queue = { redis_url: redisUrl ?? undefined, database_url: url.href, migrate: true, log };
  await (await openQueues(queue)).stop(); // before the worker, which may not make the queue's schema
  const db = createDatabase({ url: url.href, log });
  parts.push([`database of ${backend}`, db]);
  await mkdir(join(dataDir, name), { recursive: true });
  const logFile = join(dataDir, `${name}.log`);
  const group = await startProcessGroup({
    env,
    port: await freePort(),
    model: MODEL,
    logFile,
    roles: ROLES,
    standIn: "none",
  });
  parts.push([`processes on ${backend}`, group]);
  const plain = await startPlainBullmq(url.href, redisUrl);
  parts.push([`plain bullmq on ${backend}`, plain]);

  const keys = await Promise.all(
    Array.from({ length: CUSTOMERS }, (_, n) =>
      createKey(
        db,
        {
          customer: `bench-${n}@example.com`,
          initial_credits: mils(10n ** 12n),
          rate_per_s: 10_000,
          burst: 10_000, // the rate limit is not what is measured
        },
        randomBytes,
      ),
    ),
  );
  const client = createAsyncClient(group.baseUrl, await readInputs(), CALLERS);
  parts.push([`callers of ${backend}`, { stop: async () => client.close() }]);
  const postmaster = Number((await readFile(join(dataDir, "postgres/cluster/postmaster.pid"), "utf8")).split("\n")[0]);
  let seed = 0;
  return {
    backend,
    db,
    plain: (count) => plain.run(count, CALLERS),
    async rollouts(count, callers) {
      const times: Times[] = [];
      const startedAt = performance.now();
      let left = count;
      await Promise.all(
        Array.from({ length: callers }, async (_, caller) => {
          const key = keys[caller % keys.length];
          if (!key) throw new Error("no customers");
          while (left-- > 0) times.push(await client.runOne(key.api_key, ++seed));
        }),
      );
      const perSecond = (count / (performance.now() - startedAt)) * 1000;
      return { perSecond, stages: await stagesOf(db, times) };
    },
    async cpu() {
      const own = await Promise.all([...group.pids()].map(async ([role, pid]) => [role, await cpuMsOf(pid)] as const));
      const { user, system } = process.cpuUsage();
      return new Map([
        ...own.map(([role, ms]) => [role === "instant-a" ? "worker (no engine)" : role, ms] as const),
        ["the callers", (user + system) / 1000] as const,
        ...(await postgresCpu(db, postmaster)),
      ]);
    },
  };
}

async function stagesOf(db: Database, times: readonly Times[]): Promise<Stages> {
  const [row] = await db.query<{ until_dispatched_ms: number; until_settled_ms: number; until_told_ms: number }>(
    `SELECT avg(extract(epoch FROM dispatched_at - created_at) * 1000)::float8 AS until_dispatched_ms,
            avg(extract(epoch FROM finished_at - dispatched_at) * 1000)::float8 AS until_settled_ms,
            avg(seen_at - extract(epoch FROM finished_at) * 1000)::float8 AS until_told_ms
       FROM unnest($1::text[], $2::float8[]) AS seen (id, seen_at) JOIN rollouts USING (id)`,
    [times.map(({ rolloutId }) => rolloutId), times.map(({ endSeenAt }) => endSeenAt)],
  );
  if (!row) throw new Error("no rollouts");
  const mean = (of: (time: Times) => number): number => times.reduce((sum, time) => sum + of(time), 0) / times.length;
  return { accepted_ms: mean(({ accepted }) => accepted), ...row, whole_ms: mean(({ ended }) => ended) };
}

async function measure(under: readonly Under[]): Promise<Measured[]> {
  const measured = under.map(({ backend }): Measured => {
    return { backend, rollouts: [], plain: [], alone: [], saturated: [], cpu: [] };
  });
  // The first round only warms up.
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [index, system] of round % 2 === 0 ? [...under.entries()] : [...under.entries()].toReversed()) {
      const into = measured[index];
      if (!into) throw new Error("a system without a place for its figures");
      const plainFirst = round % 2 === 0;
      let plain = plainFirst ? await system.plain(PER_ROUND.plain) : 0;
      const alone = await system.rollouts(PER_ROUND.alone, 1);
      const before = await system.cpu();
      const full = await system.rollouts(PER_ROUND.rollouts, CALLERS);
      const spent = spentBetween(before, await system.cpu());
      if (!plainFirst) plain = await system.plain(PER_ROUND.plain);
      process.stderr.write(
        `  round ${round || "of warming up"}, ${system.backend}: ${full.perSecond.toFixed(0)} rollouts/s ` +
          `(alone ${alone.stages.whole_ms.toFixed(0)} ms), plain BullMQ ${plain.toFixed(0)} jobs/s\n`,
      );
      if (round === 0) continue;
      into.rollouts.push(full.perSecond);
      into.plain.push(plain);
      into.alone.push(alone.stages);
      into.saturated.push(full.stages);
      into.cpu.push(new Map([...spent].map(([name, ms]) => [name, ms / PER_ROUND.rollouts])));
    }
  }
  return measured;
}

async function readInputs() {
  const example = join("models", MODEL, "example");
  return {
    frame: await readFile(join(example, "start_frame.png")),
    actionsNpy: await readFile(join(example, "actions.npy")),
  };
}

const STAGE_NAMES: Readonly<Record<keyof Stages, string>> = {
  accepted_ms: "POST answered",
  until_dispatched_ms: "waits for dispatch",
  until_settled_ms: "queue, worker, queue, settlement",
  until_told_ms: "end known to the caller",
  whole_ms: "whole",
};

function medianOfStage(all: readonly Stages[], stage: keyof Stages): number {
  return median(all.map((each) => each[stage]));
}

async function report(measured: readonly Measured[], problems: readonly string[]): Promise<void> {
  const machine = describeMachine();
  said.push(
    "# Control plane without an engine",
    "",
    `Made by \`npm run bench:control-plane\` (bench/control-plane.ts says what is measured) on ${machine.cores} cores of ` +
      `${machine.cpu}, Node ${machine.node}. ${ROUNDS} alternating rounds of ${PER_ROUND.rollouts} rollouts by ${CALLERS} callers and of ` +
      `${PER_ROUND.plain} plain jobs; all processes, the servers and the callers share the machine. Ratios count.`,
    "",
  );
  say("| queue on | rollouts/s, median | plain BullMQ add→process, jobs/s | rollouts ÷ plain, in the same round |");
  say("|---|---|---|---|");
  for (const { backend, rollouts, plain } of measured) {
    say(
      `| ${backend} | ${median(rollouts).toFixed(0)} | ${median(plain).toFixed(0)} | ${ratioOf({ rollouts, plain }).toFixed(2)} |`,
    );
  }
  say("\n## Where the time of a rollout goes\n");
  say(
    "Means of a round, medians over the rounds, in ms. With a bounded number of callers, what waits waits for its turn.\n",
  );
  say(`| queue on, callers | ${Object.values(STAGE_NAMES).join(" | ")} |`);
  say(
    `|---|${Object.keys(STAGE_NAMES)
      .map(() => "---|")
      .join("")}`,
  );
  const stages = Object.keys(STAGE_NAMES) as (keyof Stages)[]; // its keys are what its type says
  for (const { backend, alone, saturated } of measured) {
    for (const [callers, all] of [
      [1, alone],
      [CALLERS, saturated],
    ] as const) {
      say(`| ${backend}, ${callers} | ${stages.map((stage) => medianOfStage(all, stage).toFixed(1)).join(" | ")} |`);
    }
  }
  say("\n## Whose processor time it is\n");
  say(`Milliseconds of a core for a rollout at ${CALLERS} callers, medians over the rounds (Linux only).\n`);
  say(`| | ${measured.map(({ backend }) => `queue on ${backend}`).join(" | ")} |`);
  say(`|---|${measured.map(() => "---|").join("")}`);
  const names = new Set(measured.flatMap(({ cpu }) => cpu.flatMap((round) => [...round.keys()])));
  const cpuOf = ({ cpu }: Measured, name: string): number => median(cpu.map((round) => round.get(name) ?? 0));
  for (const name of names) say(`| ${name} | ${measured.map((each) => cpuOf(each, name).toFixed(2)).join(" | ")} |`);
  say(`\nThe auditor found ${problems.length} problems in the books afterwards.`);

  await mkdir("bench/results", { recursive: true });
  await writeFile("bench/results/control-plane.md", `${said.join("\n")}\n`);
  const result = {
    made_by: "npm run bench:control-plane",
    machine,
    rounds: ROUNDS,
    per_round: PER_ROUND,
    callers: CALLERS,
    backends: measured.map((each) => ({
      queue_on: each.backend,
      rollouts_per_s: each.rollouts,
      plain_jobs_per_s: each.plain,
      ratio: ratioOf(each),
      alone: each.alone,
      saturated: each.saturated,
      cpu_ms_per_rollout: Object.fromEntries([...names].map((name) => [name, cpuOf(each, name)])),
    })),
    problems,
  };
  await writeFile("bench/results/control-plane.json", `${JSON.stringify(result, null, 2)}\n`);
  for (const problem of problems) console.error(`the books: ${problem}`);
  if (problems.length > 0) process.exitCode = 1;
}

function ratioOf({ rollouts, plain }: Pick<Measured, "rollouts" | "plain">): number {
  return median(rollouts.map((rate, round) => rate / (plain[round] ?? Number.NaN)));
}

await main();
