/** One PostgreSQL for the whole run, holding a migrated template that each test file clones, and one Redis. */
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { Client } from "pg";
import type { TestProject } from "vitest/node";

import { createDatabase } from "#platform/database.ts";
import { createLog } from "#platform/log.ts";
import { migrate } from "#platform/migrate.ts";
import { processInfo } from "#platform/processes.ts";
import { grantRights, PARTS } from "#platform/roles.ts";

import { freePort } from "#cli/ports.ts";
import { findPostgres } from "#cli/postgres-binaries.ts";

import { ensureRedis } from "./redis-server.ts";

declare module "vitest" {
  interface ProvidedContext {
    postgresUrl: string;
  }
}

export const TEMPLATE_DATABASE = "dream_template";
/**
 * Compiled code of the many processes that tests start: a command of ours takes half the processor time with it. Workers of
 * the run have it from our environment; whoever gives a process an environment of its own names it there.
 */
const COMPILE_CACHE = resolve("node_modules/.cache/dream-engine-tests");
/** One folder a run, named by the process that owns it. Readable by all: as root, the server runs as another user. */
const RUNS_DIR = join(tmpdir(), "dream-engine-test-postgres");

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  process.env["NODE_COMPILE_CACHE"] ??= COMPILE_CACHE;
  const postgres = await startPostgres();
  project.provide("postgresUrl", postgres.url);
  try {
    const redis = await ensureRedis();
    project.provide("redisUrl", redis.url);
    return async () => {
      await redis.stop();
      await postgres.stop();
    };
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

/** With the programs of the package and not its class, which makes a failed run end with exit code 0 (its exit hook). */
async function startPostgres(): Promise<{ url: string; stop(): Promise<void> }> {
  mkdirSync(RUNS_DIR, { recursive: true, mode: 0o755 });
  await removeOrphans();

  const runDir = join(RUNS_DIR, String(process.pid));
  mkdirSync(runDir, { mode: 0o700 });
  const postgres = await findPostgres(RUNS_DIR);
  const passwordFile = `${runDir}.password`;
  writeFileSync(passwordFile, "postgres", { mode: 0o600 });
  const { user } = postgres;
  if (user) for (const path of [runDir, passwordFile]) chownSync(path, user.uid, user.gid);
  const port = await freePort();

  async function finish(program: "initdb" | "pg_ctl", args: readonly string[]): Promise<void> {
    const { status, output } = await postgres.run(program, args, RUNS_DIR);
    if (status !== 0) throw new Error(`${program} of the PostgreSQL for the tests failed:\n${output}`);
  }
  const stop = async (): Promise<void> => {
    await postgres.run("pg_ctl", ["stop", "--mode=immediate", `--pgdata=${runDir}`], RUNS_DIR); // fails where it never started
    rmSync(runDir, { recursive: true, force: true, maxRetries: 5 });
  };
  const url = `postgres://postgres:postgres@127.0.0.1:${port}/postgres`;
  try {
    await finish("initdb", [
      `--pgdata=${runDir}`,
      "--username=postgres",
      `--pwfile=${passwordFile}`,
      "--auth=password",
      "--no-sync",
      "--encoding=UTF8",
      "--locale=C",
      "--no-instructions",
    ]);
    // Durability is of no use here; crash tests kill our processes, not the machine.
    const settings = ["fsync=off", "full_page_writes=off", "max_connections=300", "unix_socket_directories="];
    const options = [`-p ${port}`, ...settings.map((setting) => `-c ${setting}`)].join(" ");
    await finish("pg_ctl", ["start", `--pgdata=${runDir}`, `--log=${join(runDir, "log")}`, `--options=${options}`]);
    await createTemplate(url);
  } catch (error) {
    await stop();
    throw error;
  } finally {
    rmSync(passwordFile, { force: true });
  }
  return { url, stop };
}

async function createTemplate(url: string): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  await client.query(`CREATE DATABASE ${TEMPLATE_DATABASE}`);
  await client.end();
  const template = new URL(url);
  template.pathname = TEMPLATE_DATABASE;
  const log = createLog("test", "warn");
  await migrate(template.href, log);
  const db = createDatabase({ url: template.href, log });
  for (const part of PARTS) {
    await db.query(`CREATE ROLE test_${part} LOGIN PASSWORD 'test'`);
    await db.transaction((tx) => grantRights(tx, `test_${part}`, part));
  }
  await db.stop(); // a template must have no connections
}

/** A test run that was killed leaves its server behind: end it and remove its files. */
async function removeOrphans(): Promise<void> {
  for (const name of readdirSync(RUNS_DIR)) {
    if (await processInfo(Number(name))) continue; // another run, which is still going
    const dir = join(RUNS_DIR, name);
    const postmaster = await processInfo(postmasterOf(dir));
    // The id may belong to somebody else by now; a server names its directory on its command line.
    if (postmaster?.command.includes(dir)) process.kill(postmaster.pid, "SIGKILL");
    rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Process id of the server that was started on that directory; 0, which is nobody's, when there was none. */
function postmasterOf(dir: string): number {
  const pidFile = join(dir, "postmaster.pid");
  return existsSync(pidFile) ? Number(readFileSync(pidFile, "utf8").split("\n")[0]) : 0;
}
