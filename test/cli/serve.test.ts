/** `serve` as a person meets it. The dreaming itself is in test/e2e; here it is about starting, sharing and ending. */
import { once } from "node:events";
import { chmod, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { Client } from "pg";
import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { processInfo } from "#platform/processes.ts";

import { eventually } from "../queue/test-queue.ts";
import { run, start, type Started } from "./command.ts";

/** Starting everything on a busy machine. */
const START_TIMEOUT_MS = 60_000;
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 });

let folder: string;
let env: Record<string, string>;
let server: Started;
let url: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-serve-"));
  await chmod(folder, 0o755); // as root, PostgreSQL runs as another user who must pass through
  env = { DATA_DIR: join(folder, "data"), MODELS_DIR: resolve("models"), PORT: "0", LOG_LEVEL: "info" };
  ({ server, url } = await serve());
});
afterAll(async () => {
  const exited = once(server.child, "exit");
  server.child.kill("SIGTERM");
  await exited;
  await rm(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
});

async function serve(): Promise<{ server: Started; url: string }> {
  const started = start(["serve"], env);
  const base = await eventually(async () => {
    if (started.child.exitCode !== null) throw new Error(`serve ended:\n${started.stderr()}`);
    return /Base URL\s+(\S+)/.exec(started.stdout())?.[1];
  }, START_TIMEOUT_MS);
  return { server: started, url: base };
}

/** The worker's process id, from the line that says it is ready. */
function workerPid(): number {
  const line =
    server
      .stderr()
      .split("\n")
      .findLast((text) => text.includes('"worker ready"')) ?? "{}";
  return (JSON.parse(line) as { pid: number }).pid;
}

/** Its environment as it was given, by name. */
async function environmentOf(pid: number): Promise<Map<string, string>> {
  const text = await readFile(`/proc/${pid}/environ`, "utf8");
  return new Map(text.split("\0").map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]));
}

test("says where it is, which models it has, and how to get a key", async () => {
  expect(server.stdout()).toContain("pusht-small (warm)");
  expect(server.stdout()).toContain(`${url}/docs`);
  expect(server.stdout()).toContain("keys create --customer");
  expect((await fetch(`${url}/healthz`)).status).toBe(200);
});

test("a second serve on the same data is refused with the process and the address of the first", async () => {
  const second = await run(["serve"], env);
  expect(second.code).toBe(1);
  expect(second.stderr).toContain(`process ${server.child.pid}, ${url}`);
  expect(second.stderr).toContain("DATA_DIR=another-folder");
  expect((await fetch(`${url}/healthz`)).status).toBe(200);
});

test("a port in use: says who has it and what to do, and leaves nothing running", async () => {
  const stranger = createServer();
  await new Promise<void>((listening) => stranger.listen(0, "127.0.0.1", listening));
  const { port } = stranger.address() as AddressInfo;
  const dataDir = join(folder, "other");
  const refused = await run(["serve"], { ...env, DATA_DIR: dataDir, PORT: String(port) });
  stranger.close();
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain(`Port ${port} is in use by`);
  expect(refused.stderr).toContain(`(process ${process.pid})`);
  expect(refused.stderr).toContain("PORT=8080 npm start");
  await expect(readFile(join(dataDir, "postgres", "cluster", "postmaster.pid"))).rejects.toThrow("ENOENT");
});

test("models that are not there: says where it looked", async () => {
  const refused = await run(["serve"], { ...env, MODELS_DIR: folder });
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain(`no model bundle in ${folder} (MODELS_DIR)`);
});

test("an environment that is not valid: names what was expected", async () => {
  const refused = await run(["serve"], { ...env, PORT: "eighty" });
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('PORT: expected a port number from 0 to 65535, got "eighty"');
});

test("a worker gets no way to the ledger", async () => {
  const environment = await environmentOf(workerPid());
  expect([...environment.keys()].filter((name) => name !== "").sort()).toEqual(
    expect.arrayContaining(["BLOB_URL", "DATABASE_URL", "LOG_LEVEL", "MODEL", "MODELS_DIR", "ORT_PROVIDERS"]),
  );
  expect(environment.has("DATA_DIR")).toBe(false);

  const client = new Client({ connectionString: environment.get("DATABASE_URL") });
  await client.connect();
  for (const table of ["ledger_entries", "accounts", "api_keys", "rollouts", "shared_secrets"]) {
    await expect(client.query(`SELECT * FROM ${table}`)).rejects.toThrow(/permission denied|does not exist/);
    await expect(client.query(`SELECT * FROM public.${table}`)).rejects.toThrow(/permission denied/);
  }
  const { rows } = await client.query<{ super: boolean }>(
    "SELECT usesuper AS super FROM pg_user WHERE usename = current_user",
  );
  expect(rows).toEqual([{ super: false }]);
  await client.end();
});

test("no password is in any process's log", () => {
  expect(server.stderr()).not.toMatch(/:\/\/[^\s:/@]+:(?!\[secret\])[^\s@/]+@/);
});

test("the demo uses the server that runs, and leaves it running", async () => {
  const demo = await run([resolve("src/cli/demo.ts")], env, folder);
  expect(demo.stderr).toContain(`using the server that runs at ${url}`);
  expect(demo.stdout).toContain("$0.0245 (245 mils)");
  expect(demo.code).toBe(0);
  expect((await fetch(`${url}/healthz`)).status).toBe(200);
});

test("killed with SIGKILL: its workers end by themselves, and the next start is quick and has its data", async () => {
  const worker = workerPid();
  const exited = once(server.child, "exit");
  server.child.kill("SIGKILL");
  await exited;
  await eventually(async () => (await processInfo(worker)) === null, START_TIMEOUT_MS);

  ({ server, url } = await serve());
  const keys = await run(["keys", "list", "--json"], env);
  expect(keys.stdout).toContain("demo@dream-engine.local");
});
