/** A real redis-server for one test or benchmark run; installed first where that is possible. */
import { execFile, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { Redis } from "ioredis";

import { freePort } from "#cli/ports.ts";
import { settlesWithin } from "#platform/bounded.ts";

const run = promisify(execFile);
const START_TIMEOUT_MS = 15_000;
const INSTALL_TIMEOUT_MS = 180_000;
/** Enough for every test file of a run to have its own. */
export const REDIS_DATABASES = 1_024;

/** Starts a server on a free port; installs redis-server first where that is possible. Never skips. */
export async function ensureRedis(): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const binary = (await findRedis()) ?? (await installRedis());
  const dir = await mkdtemp(join(tmpdir(), "dream-engine-test-redis-"));
  const port = await freePort();
  const server = spawn(
    binary,
    // Nothing on disk, and what production does when memory is full.
    Object.entries({
      port: String(port),
      bind: "127.0.0.1",
      databases: String(REDIS_DATABASES),
      dir,
      save: "",
      appendonly: "no",
      "maxmemory-policy": "noeviction",
    }).flatMap(([name, value]) => [`--${name}`, value]),
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  let output = "";
  server.stdout.on("data", (chunk: Buffer) => (output = (output + chunk.toString()).slice(-4_000)));
  const exited = new Promise<void>((resolve) => server.once("exit", () => resolve()));
  // Also when the run ends without teardown.
  const kill = (): void => void server.kill("SIGKILL");
  process.once("exit", kill);

  const url = `redis://127.0.0.1:${port}`;
  const probe = new Redis(url, { retryStrategy: () => 50, maxRetriesPerRequest: null });
  probe.on("error", () => undefined); // refused until the server listens
  const failed = exited.then(() => Promise.reject(new Error(`redis-server ended:\n${output}`)));
  try {
    if (!(await settlesWithin(START_TIMEOUT_MS, Promise.race([probe.ping(), failed])))) {
      throw new Error(`redis-server did not answer within ${START_TIMEOUT_MS} ms:\n${output}`);
    }
  } catch (error) {
    kill();
    throw error;
  } finally {
    probe.disconnect();
    failed.catch(() => undefined); // from here on its end is stop()'s doing
  }
  return {
    url,
    async stop() {
      process.off("exit", kill);
      kill();
      await exited;
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function findRedis(): Promise<string | null> {
  const name = process.env["REDIS_SERVER"] ?? "redis-server";
  try {
    await run(name, ["--version"]);
    return name;
  } catch {
    return null; // not installed
  }
}

async function installRedis(): Promise<string> {
  const how =
    "These tests run against a real redis-server (6.2 or newer), and none was found. Install it " +
    "(Debian and Ubuntu: apt-get install redis-server; macOS: brew install redis), or set REDIS_SERVER to its path.";
  if (process.getuid?.() !== 0) throw new Error(how);
  // apt may start services through runlevel scripts; RUNLEVEL=1 tells them not to.
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive", RUNLEVEL: "1" };
  try {
    await run("apt-get", ["update", "-qq"], { env, timeout: INSTALL_TIMEOUT_MS });
    const packages = ["--no-install-recommends", "redis-server"];
    await run("apt-get", ["install", "-y", "-qq", ...packages], { env, timeout: INSTALL_TIMEOUT_MS });
  } catch (error) {
    throw new Error(`${how} Installing it with apt-get failed.`, { cause: error });
  }
  const installed = await findRedis();
  if (installed === null) throw new Error(how);
  return installed;
}
