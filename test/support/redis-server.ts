/** A real redis-server for one test or benchmark run; installed first where that is possible. */
import { execFile, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { Redis } from "ioredis";

import { freePort } from "#cli/ports.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Service } from "#platform/lifecycle.ts";

const run = promisify(execFile);
const START_TIMEOUT_MS = 15_000;
const INSTALL_TIMEOUT_MS = 180_000;
/** Enough for every test file of a run to have its own. */
export const REDIS_DATABASES = 1_024;

/** How a server is started, where, and by which password. */
export interface RedisStart {
  readonly password: string | null;
  argv(at: RedisPlace): readonly [program: string, ...args: string[]];
  /** Beside ours. */
  env(at: RedisPlace): Readonly<Record<string, string>>;
}

interface RedisPlace {
  /** redis-server. */
  readonly binary: string;
  readonly port: number;
  /** For its files. */
  readonly dir: string;
}

/** Nothing on disk, and what production does when memory is full. */
const VOLATILE: RedisStart = {
  password: null,
  argv: ({ binary, port, dir }) => [
    binary,
    ...Object.entries({
      port: String(port),
      bind: "127.0.0.1",
      databases: String(REDIS_DATABASES),
      dir,
      save: "",
      appendonly: "no",
      "maxmemory-policy": "noeviction",
    }).flatMap(([name, value]) => [`--${name}`, value]),
  ],
  env: () => ({}),
};

export interface RedisServer extends Service {
  readonly url: string;
  /** SIGKILLs it and starts it again on what its files hold, if it keeps any; resolves when it has read them. */
  crash(): Promise<void>;
}

/** Starts a server on a free port; installs redis-server first where that is possible. Never skips. */
export async function ensureRedis(how: RedisStart = VOLATILE): Promise<RedisServer> {
  const binary = (await findRedis()) ?? (await installRedis());
  const dir = await mkdtemp(join(tmpdir(), "dream-engine-test-redis-"));
  const port = await freePort();
  const place = { binary, port, dir };
  const url = `redis://${how.password === null ? "" : `:${encodeURIComponent(how.password)}@`}127.0.0.1:${port}`;
  const start = (): Promise<Running> => startServer(how.argv(place), how.env(place), url);
  let running = await start();
  return {
    url,
    async crash() {
      await running.kill();
      running = await start();
    },
    async stop() {
      await running.kill();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

interface Running {
  kill(): Promise<void>;
}

/** Resolves when it answers. */
async function startServer(
  [program, ...args]: readonly [string, ...string[]],
  env: Readonly<Record<string, string>>,
  url: string,
): Promise<Running> {
  const server = spawn(program, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  server.stdout.on("data", (chunk: Buffer) => (output = (output + chunk.toString()).slice(-4_000)));
  const exited = new Promise<void>((resolve) => server.once("exit", () => resolve()));
  // Also when the run ends without teardown.
  const kill = (): void => void server.kill("SIGKILL");
  process.once("exit", kill);

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
    failed.catch(() => undefined); // from here on its end is kill()'s doing
  }
  return {
    async kill() {
      process.off("exit", kill);
      kill();
      await exited;
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
