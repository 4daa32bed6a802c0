/**
 * A pool without workers: the first request is served and pays for its frames alone, and the pool is empty again one scaledown
 * window after the last job. With the real model and the real server. CHAOS=long takes the window that ships, 60 s.
 */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { afterAll, beforeAll, expect, test } from "vitest";

import { type OpenDatabase, openDatabase, type Parts } from "#cli/context.ts";
import { balanceMils, dream } from "#cli/customer.ts";
import { readConfig } from "#platform/config.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { listPoolEvents } from "#pools/events.ts";
import { type Pool, readPools } from "#pools/pool.ts";

import { run, start, type Started } from "../cli/command.ts";
import { eventually } from "../queue/test-queue.ts";
import { silentLog } from "../support/postgres.ts";

const SCALEDOWN_S = process.env["CHAOS"] === "long" ? 60 : 3;
const MODEL = "pusht-small";
const FRAMES = 49;
const PRICE_MILS = 5;
const START_MS = 90_000;
/** Two looks of the scaler, and the worker's own end. */
const LATE_S = 8;

const home = mkdtempSync(join(tmpdir(), "dream-from-zero-"));
const dataDir = join(home, "data");
const env = {
  DATA_DIR: dataDir,
  MODELS_DIR: resolve("models"),
  PORT: "0",
  LOG_LEVEL: "warn",
  SCALEDOWN_S: String(SCALEDOWN_S),
};
const parts: Parts = [];
let server: Started | undefined;
let db: OpenDatabase["db"];
let url: string;
let apiKey: string;

beforeAll(async () => {
  server = start(["serve"], env);
  url = await baseUrlOf(server);
  const minted = await run(
    ["keys", "create", "--customer", "a@example.com", "--initial-credits", "1.00", "--json"],
    env,
  );
  apiKey = (JSON.parse(minted.stdout) as { api_key: string }).api_key;
  ({ db } = await openDatabase(readConfig(env), silentLog, parts));
}, START_MS + 30_000);
afterAll(async () => {
  await stopAll(parts, silentLog);
  if (server?.child.exitCode === null) {
    const gone = once(server.child, "exit");
    server.child.kill("SIGTERM");
    await gone;
  }
  rmSync(home, { recursive: true, force: true });
});

async function baseUrlOf({ child, stdout, stderr }: Started): Promise<string> {
  const url = () => /Base URL\s+(\S+)/.exec(stdout())?.[1];
  await eventually(async () => url() !== undefined || child.exitCode !== null, START_MS).catch(() => undefined);
  return url() ?? expect.unreachable(`the server did not get ready:\n${stdout()}\n${stderr()}`);
}

/** The pool as the scheduler sees it, once it is as it should be. */
const poolOnce = (isSo: (pool: Pool) => boolean, limitMs: number): Promise<Pool> =>
  eventually(async () => {
    const pool = (await readPools(db)).find(({ model }) => model === MODEL);
    return pool !== undefined && isSo(pool) && pool;
  }, limitMs);

const isEmpty = ({ ready, starting, draining }: Pool): boolean => ready + starting + draining === 0;
const untilEmpty = (): Promise<Pool> => poolOnce(isEmpty, (SCALEDOWN_S + 30) * 1000);

/** Its inference workers: their environment names where the blobs are. */
function workerProcesses(): string[] {
  return execFileSync("ps", ["axeww", "-o", "args"], { encoding: "utf8", maxBuffer: 64 * 1024 * 1024 })
    .split("\n")
    .filter((line) => line.includes("workers/inference/main.ts") && line.includes(dataDir));
}

const example = (name: string): Buffer => readFileSync(join("models", MODEL, "example", name));

test(
  "a request to an empty pool is served, pays for its frames alone, and leaves the pool empty one window later",
  { timeout: (3 * SCALEDOWN_S + 120) * 1000 },
  async () => {
    // The one that `serve` starts with goes unused.
    await untilEmpty();
    await eventually(async () => workerProcesses().length === 0);
    const before = await balanceMils(url, apiKey);

    const reply = await dream({
      url,
      apiKey,
      frame: example("start_frame.png"),
      actions: example("actions.npy"),
      fields: { seed: "7" },
    });
    expect(reply.frames).toBe(FRAMES);
    expect(reply.video.subarray(4, 8).toString()).toBe("ftyp");
    expect(workerProcesses()).toHaveLength(1);
    // It waited for a cold start, and that cost nothing.
    expect(reply.totalMs).toBeGreaterThan(reply.engineWallMs);
    expect(before - (await balanceMils(url, apiKey))).toBe(FRAMES * PRICE_MILS);
    const entries = await db.query<{ kind: string; amount_mils: bigint }>(
      "SELECT kind, amount_mils FROM ledger_entries ORDER BY seq",
    );
    expect(entries.map(({ kind, amount_mils }) => [kind, Number(amount_mils)])).toEqual([
      ["credit", 10_000],
      ["debit", -FRAMES * PRICE_MILS],
    ]);

    const { looked_at, seconds_per_sample } = await untilEmpty();
    expect(seconds_per_sample).toBeGreaterThan(0);
    const [row] = await db.query<{ finished_at: Date }>("SELECT finished_at FROM rollouts");
    const emptyAfterS = (looked_at.getTime() - (row?.finished_at.getTime() ?? 0)) / 1000;
    expect(emptyAfterS).toBeGreaterThanOrEqual(SCALEDOWN_S - 0.1);
    expect(emptyAfterS).toBeLessThan(SCALEDOWN_S + LATE_S);
    await eventually(async () => workerProcesses().length === 0);
    await eventually(async () => {
      const status = (await (await fetch(`${url}/v1/status`)).json()) as { pool?: string };
      return JSON.stringify(status).includes('"cold"');
    });

    const events = await listPoolEvents(db, { model: MODEL, kinds: ["scaled"], since: null, limit: 10 });
    expect(
      events.map(({ detail }) => [detail["from"], detail["to"], (detail["reason"] as { kind: string }).kind]),
    ).toEqual([
      [1, 0, "scale_in"],
      [0, 1, "from_zero"],
      [1, 0, "scale_in"],
    ]);
    expect(server?.stderr()).not.toMatch(/fatal|keeps dying/i);
  },
);
