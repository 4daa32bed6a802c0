/**
 * Two schedulers that both may run workers (FLEET=local), as processes, with the real worker: only the leader's has any, and
 * when it is killed its workers end by themselves and the other's take over.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { afterAll, expect, test } from "vitest";

import { processInfo } from "#platform/processes.ts";
import { type Pool, readPools } from "#pools/pool.ts";

import { eventually } from "../queue/test-queue.ts";
import { accept, newCustomer } from "../support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";

const START_MS = 60_000;

const home = mkdtempSync(join(tmpdir(), "dream-two-fleets-"));
const children: ChildProcess[] = [];
let database: TestDatabase | undefined;

afterAll(async () => {
  for (const child of children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null)) {
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    await exited;
  }
  await database?.drop();
  rmSync(home, { recursive: true, force: true });
});

function startScheduler(name: string, databaseUrl: string): ChildProcess {
  const child = spawn(process.execPath, ["src/cli/main.ts", "scheduler"], {
    env: {
      PATH: process.env["PATH"],
      NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
      DATABASE_URL: databaseUrl,
      BLOB_URL: `file://${join(home, "blobs")}`,
      DATA_DIR: join(home, name),
      MODELS_DIR: resolve("models"),
      FLEET: "local",
      LOG_LEVEL: "error",
    },
    stdio: ["ignore", "inherit", "inherit"],
  });
  children.push(child);
  return child;
}

/** Process ids of a scheduler's workers, from the note that it keeps of them. */
function workersOf(name: string, { pid }: ChildProcess): number[] {
  const folder = join(home, name, "workers");
  try {
    const file = readdirSync(folder).find((entry) => entry === `${pid}.json`);
    if (file === undefined) return [];
    const note = JSON.parse(readFileSync(join(folder, file), "utf8")) as { workers: { pid: number }[] };
    return note.workers.map((worker) => worker.pid);
  } catch {
    return []; // not started yet
  }
}

test(
  "of two schedulers with workers of their own the leader's alone has any, and the other's take over",
  { timeout: 4 * START_MS },
  async () => {
    database = await createTestDatabase();
    const { db, url } = database;
    const poolOnce = (isSo: (pool: Pool) => boolean): Promise<Pool> =>
      eventually(async () => (await readPools(db)).find(isSo), START_MS);
    const first = startScheduler("first", url);
    await poolOnce(({ fleet, desired }) => fleet === "local" && desired === 0);
    const second = startScheduler("second", url);
    await accept(db, await newCustomer(db), { deadline_at: new Date(Date.now() + 10 * START_MS) });
    await poolOnce(({ ready }) => ready === 1);
    const workers = workersOf("first", first);
    expect(workers).toHaveLength(1);
    expect(workersOf("second", second)).toEqual([]);

    const [{ epoch }] = (await db.query("SELECT epoch FROM scheduler_leader")) as [{ epoch: bigint }];
    first.kill("SIGKILL");
    await eventually(async () => {
      const [leader] = await db.query<{ epoch: bigint }>("SELECT epoch FROM scheduler_leader");
      return leader !== undefined && leader.epoch > epoch;
    }, START_MS);
    for (const pid of workers) await eventually(async () => (await processInfo(pid)) === null, START_MS);
    // Nobody settles here, so the rollout that the first one's worker had stays dispatched; another brings the second's.
    await accept(db, await newCustomer(db), { deadline_at: new Date(Date.now() + 10 * START_MS) });
    await eventually(async () => workersOf("second", second).length === 1, START_MS);
    await poolOnce(({ ready, looked_at }) => ready === 1 && Date.now() - looked_at.getTime() < 5_000);
  },
);
