/** The whole embedded system as `npm start` runs it, for a benchmark: started, given a customer, stopped. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

import { openDatabase, type Parts } from "#cli/context.ts";
import { readConfig } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";

export interface ServedSystem {
  readonly url: string;
  readonly apiKey: string;
  /** Where the wall of the `count` latest rollouts went, as means in milliseconds. */
  stagesOfLatest(count: number): Promise<Stages>;
  stop(): Promise<void>;
}

/** In the order in which a rollout goes through them. What lies before and after is HTTP and input validation. */
export interface Stages {
  readonly dispatch_ms: number;
  readonly queue_and_settlement_ms: number;
  readonly fetch_ms: number;
  readonly engine_ms: number;
  readonly encode_ms: number;
  readonly answer_ms: number;
}

/**
 * From the rows' own times. The worker's total starts when it picks the job up, so what is left between dispatch and
 * the end is the two queue hops and the settlement.
 */
const STAGES = {
  dispatch_ms: "extract(epoch FROM dispatched_at - created_at) * 1000",
  queue_and_settlement_ms: "extract(epoch FROM finished_at - dispatched_at) * 1000 - total",
  fetch_ms: "(timings ->> 'fetch_ms')::float8",
  engine_ms: "(timings ->> 'engine_wall_ms')::float8",
  encode_ms: "total - (timings ->> 'fetch_ms')::float8 - (timings ->> 'engine_wall_ms')::float8",
  answer_ms: "extract(epoch FROM delivered_at - finished_at) * 1000",
} as const satisfies Readonly<Record<keyof Stages, string>>;

/**
 * Means of the `latest` rollouts that succeeded, of that customer alone if one is named; or what `percent` of them stay within,
 * each stage by itself.
 */
export async function stagesOf(
  db: Database,
  options: { readonly latest: number; readonly customer?: string | null; readonly percent?: number },
): Promise<Stages> {
  const { latest, customer = null, percent } = options;
  const columns = Object.entries(STAGES).map(([name, of]) =>
    percent === undefined
      ? `avg(${of})::float8 AS ${name}`
      : `(percentile_cont(${percent / 100}) WITHIN GROUP (ORDER BY (${of})::float8)) AS ${name}`,
  );
  const [stages] = await db.query<Stages>(
    `SELECT ${columns.join(", ")}
       FROM (SELECT *, (timings ->> 'total_ms')::float8 AS total
               FROM (SELECT *, result -> 'timings' AS timings FROM rollouts
                      WHERE status = 'succeeded' AND customer_id = coalesce($2, customer_id)
                      ORDER BY created_at DESC LIMIT $1) latest) timed`,
    [latest, customer],
  );
  if (!stages) throw new Error("no rollouts yet");
  return stages;
}

const READY_TIMEOUT_MS = 120_000;
const STOP_TIMEOUT_MS = 30_000;
const MAIN = "src/cli/main.ts";

/** `redisUrl` null: the queue on the embedded PostgreSQL. `settings`: more of its environment. */
export async function startServedSystem(
  redisUrl: string | null,
  settings: Readonly<Record<string, string>> = {},
): Promise<ServedSystem> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-"));
  // What is measured is a warm system, also after a pause.
  const warm = { WORKERS_MIN: settings["WORKERS"] ?? process.env["WORKERS"] ?? "1" };
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    ...warm,
    ...settings,
    DATA_DIR: dataDir,
    PORT: "0",
    LOG_LEVEL: "warn",
  };
  if (redisUrl !== null) env["REDIS_URL"] = redisUrl;
  const server = spawn(process.execPath, [MAIN, "serve"], { env, stdio: ["ignore", "pipe", "inherit"] });
  const url = await baseUrlOf(server.stdout);

  const mint = ["keys", "create", "--customer", "bench@example.com", "--initial-credits", "1000", "--json"];
  const keys = spawn(process.execPath, [MAIN, ...mint], { env, stdio: ["ignore", "pipe", "inherit"] });
  const { api_key: apiKey, key_id: keyId } = JSON.parse(await textOf(keys.stdout)) as Record<string, string>;
  // The rate limit is not what is measured.
  const limit = ["keys", "limit", String(keyId), "--rate", "10000", "--burst", "10000"];
  await once(spawn(process.execPath, [MAIN, ...limit], { env, stdio: "ignore" }), "exit");

  const parts: Parts = [];
  const log = createLog("bench", "warn");
  const { db } = await openDatabase(readConfig({ DATA_DIR: dataDir }), log, parts);
  return {
    url,
    apiKey: String(apiKey),
    stagesOfLatest: (count) => stagesOf(db, { latest: count }),
    async stop() {
      await stopAll(parts, log);
      const exited = once(server, "exit");
      server.kill("SIGTERM");
      if ((await Promise.race([exited, delay(STOP_TIMEOUT_MS, "late")])) === "late") server.kill("SIGKILL");
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

async function baseUrlOf(stdout: NodeJS.ReadableStream): Promise<string> {
  const lines = createInterface({ input: stdout });
  const found = (async () => {
    for await (const line of lines) {
      const url = /Base URL\s+(\S+)/.exec(line)?.[1];
      if (url !== undefined) return url;
    }
    throw new Error("the server ended before it was ready");
  })();
  const late = delay(READY_TIMEOUT_MS).then(() => {
    throw new Error(`the server was not ready within ${READY_TIMEOUT_MS} ms`);
  });
  return Promise.race([found, late]);
}

async function textOf(stdout: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of stdout) text += String(chunk);
  return text;
}
