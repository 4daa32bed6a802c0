/**
 * The claim: a key is granted its burst and its refill, within 1 %, however many gateways it asks. Real gateway processes
 * on one database, with the limiter in Redis and in PostgreSQL; callers that never let up ask `GET /v1/billing/balance`
 * with one key for a while. Ideal = burst + refill × (last grant − first grant), both as the callers saw them.
 *
 * Prints its table and writes bench/results/rate-limit.md and .json; ends with 1 when the claim is missed.
 * `npm run bench:rate-limit`
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { Agent, request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { openDatabase, type Parts } from "#cli/context.ts";
import { freePort } from "#cli/ports.ts";
import { KEY_BURST_DEFAULT, KEY_RATE_PER_S_DEFAULT } from "#contract/limits.ts";
import { createKey } from "#keys/keys.ts";
import { readConfig } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { ensureRedis } from "#test/support/redis-server.ts";

import { describeMachine } from "./machine.ts";

const SATURATED_MS = 20_000;
/** Callers of all gateways together, each with a connection of its own and always asking. */
const CALLERS = 16;
/** After a refusal, so that the callers leave the gateways some of the machine. */
const PAUSE_MS = 5;
const MISS_MAX = 0.01;
const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 15_000;

type Backend = "Redis" | "PostgreSQL";

interface Measured {
  readonly backend: Backend;
  readonly gateways: number;
  readonly asked: number;
  readonly seconds: number;
  readonly granted: number;
  readonly ideal: number;
  /** (granted − ideal) ÷ ideal. */
  readonly miss: number;
  /** Requests that a gateway counted by itself, because the limiter did not answer in time. */
  readonly fallbacks: number;
}

async function main(): Promise<void> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-rate-"));
  const parts: Parts = [];
  const log = createLog("bench", "warn");
  const redis = await ensureRedis();
  parts.push(["redis", redis]);
  const measured: Measured[] = [];
  try {
    const { db, url } = await openDatabase(readConfig({ DATA_DIR: dataDir }), log, parts);
    for (const backend of ["Redis", "PostgreSQL"] as const) {
      for (const gateways of [1, 4]) {
        const env = {
          DATABASE_URL: url,
          BLOB_URL: `file://${dataDir}/blobs`,
          DATA_DIR: dataDir,
          LOG_LEVEL: "warn",
          ...(backend === "Redis" ? { REDIS_URL: redis.url } : {}),
        };
        measured.push(await measure(backend, gateways, env, db));
        console.log(rowOf(measured.at(-1)));
      }
    }
  } finally {
    await stopAll(parts, log);
    await rm(dataDir, { recursive: true, force: true });
  }
  await report(measured);
  if (measured.some(({ miss }) => Math.abs(miss) > MISS_MAX)) process.exitCode = 1;
}

async function measure(
  backend: Backend,
  count: number,
  env: Readonly<Record<string, string>>,
  db: Database,
): Promise<Measured> {
  const processes = await Promise.all(Array.from({ length: count }, () => startGatewayProcess(env)));
  try {
    const urls = processes.map(({ url }) => url);
    const newKey = async (): Promise<string> =>
      (await createKey(db, { customer: "bench@example.com" }, randomBytes)).api_key;
    // With a key of its own: connections, compiled code and prepared statements.
    await saturate(urls, await newKey(), 1_000);
    const answers = await saturate(urls, await newKey(), SATURATED_MS);
    const odd = answers.find(({ status }) => status !== 200 && status !== 429);
    if (odd) throw new Error(`a gateway answered ${odd.status}`);
    const grants = answers.filter(({ status }) => status === 200).map(({ at }) => at);
    const seconds = (Math.max(...grants) - Math.min(...grants)) / 1000;
    const ideal = KEY_BURST_DEFAULT + KEY_RATE_PER_S_DEFAULT * seconds;
    let fallbacks = 0;
    for (const url of urls) fallbacks += await fallbacksOf(url);
    return {
      backend,
      gateways: count,
      asked: answers.length,
      seconds,
      granted: grants.length,
      ideal,
      miss: (grants.length - ideal) / ideal,
      fallbacks,
    };
  } finally {
    await Promise.all(processes.map((process) => process.stop()));
  }
}

interface Answer {
  readonly status: number;
  /** Milliseconds of this process's clock. */
  readonly at: number;
}

async function saturate(urls: readonly string[], apiKey: string, forMs: number): Promise<Answer[]> {
  const answers: Answer[] = [];
  const agent = new Agent({ keepAlive: true, maxSockets: CALLERS });
  const until = performance.now() + forMs;
  const call = async (url: string): Promise<void> => {
    while (performance.now() < until) {
      const status = await statusOf(`${url}/v1/billing/balance`, apiKey, agent);
      answers.push({ status, at: performance.now() });
      if (status === 429) await delay(PAUSE_MS);
    }
  };
  await Promise.all(Array.from({ length: CALLERS }, (_unused, i) => call(urls[i % urls.length] ?? "")));
  agent.destroy();
  return answers;
}

function statusOf(url: string, apiKey: string, agent: Agent): Promise<number> {
  return new Promise((resolve, reject) => {
    const asked = request(url, { agent, headers: { authorization: `Bearer ${apiKey}` } }, (response) => {
      response.resume();
      response.once("end", () => resolve(response.statusCode ?? 0));
      response.once("error", reject);
    });
    asked.once("error", reject);
    asked.end();
  });
}

async function fallbacksOf(url: string): Promise<number> {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  return Number(/^dream_rate_limit_fallbacks_total\S* (\d+)$/m.exec(metrics)?.[1] ?? Number.NaN);
}

async function startGatewayProcess(
  env: Readonly<Record<string, string>>,
): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const port = await freePort();
  const child = spawn(process.execPath, ["src/cli/main.ts", "gateway"], {
    env: { PATH: process.env["PATH"], HOME: process.env["HOME"], ...env, PORT: String(port) },
    stdio: ["ignore", "inherit", "inherit"],
  });
  const stop = (): Promise<void> => stopProcess(child);
  const url = `http://127.0.0.1:${port}`;
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (performance.now() < deadline && child.exitCode === null) {
    const ready = await fetch(`${url}/readyz`).then(
      ({ ok }) => ok,
      () => false, // not listening yet
    );
    if (ready) return { url, stop };
    await delay(100);
  }
  await stop();
  throw new Error(`a gateway was not ready within ${READY_TIMEOUT_MS} ms`);
}

async function stopProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGTERM");
  if ((await Promise.race([exited, delay(STOP_TIMEOUT_MS, "late")])) === "late") child.kill("SIGKILL");
}

function rowOf(measured: Measured | undefined): string {
  if (!measured) return "";
  const { backend, gateways, asked, seconds, granted, ideal, miss, fallbacks } = measured;
  const percent = `${miss >= 0 ? "+" : "−"}${(Math.abs(miss) * 100).toFixed(2)} %`;
  return `| ${[backend, gateways, asked, seconds.toFixed(3), granted, ideal.toFixed(1), percent, fallbacks].join(" | ")} |`;
}

async function report(measured: readonly Measured[]): Promise<void> {
  const machine = describeMachine();
  const lines = [
    "# Rate limits under saturation",
    "",
    `\`npm run bench:rate-limit\` on ${machine.cpu}, ${machine.cores} cores, ${machine.memory_gib} GiB, Node ${machine.node}.`,
    `One key of ${KEY_RATE_PER_S_DEFAULT} requests a second with a burst of ${KEY_BURST_DEFAULT}, asked by ${CALLERS} callers without a break.`,
    "Ideal: burst + refill × (last grant − first grant). At most 1 % off, in either direction.",
    "",
    "| limiter in | gateways | asked | seconds | granted | ideal | off by | counted locally |",
    "|---|---|---|---|---|---|---|---|",
    ...measured.map(rowOf),
  ];
  console.log(`\n${lines.join("\n")}`);
  const results = join(import.meta.dirname, "results");
  await mkdir(results, { recursive: true });
  await writeFile(join(results, "rate-limit.md"), `${lines.join("\n")}\n`);
  const figures = { machine, rate_per_s: KEY_RATE_PER_S_DEFAULT, burst: KEY_BURST_DEFAULT, measured };
  await writeFile(join(results, "rate-limit.json"), `${JSON.stringify(figures, null, 2)}\n`);
}

await main();
