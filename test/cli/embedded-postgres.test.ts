/** The embedded server through everything that can happen to it and to the processes that use it. */
import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { Client } from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";

import { type EmbeddedPostgres, openEmbeddedPostgres } from "#cli/embedded-postgres.ts";
import { processInfo } from "#platform/processes.ts";

import { eventually } from "../queue/test-queue.ts";
import { silentLog } from "../support/postgres.ts";

const HOLDER = fileURLToPath(new URL("postgres-holder.ts", import.meta.url));

let root: string;
let dataDir: string;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dream-embedded-"));
  await chmod(root, 0o755); // as root, PostgreSQL runs as another user who must pass through
  dataDir = join(root, "data");
  await (await open()).stop();
});
afterAll(async () => {
  const pid = await postmasterPid();
  if (pid !== null && (await processInfo(pid))?.command.includes(dataDir) === true) process.kill(pid, "SIGQUIT");
  await rm(root, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
});

const open = (folder = dataDir): Promise<EmbeddedPostgres> => openEmbeddedPostgres({ dataDir: folder, log: silentLog });

async function query(url: string, text: string): Promise<Record<string, unknown>[]> {
  const client = new Client({ connectionString: url });
  client.on("error", () => undefined);
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(text)).rows;
  } finally {
    await client.end();
  }
}

async function postmasterPid(): Promise<number | null> {
  const text = await readFile(join(dataDir, "postgres", "cluster", "postmaster.pid"), "utf8").catch(() => null);
  return text === null ? null : Number.parseInt(text, 10);
}
const isStopped = async (): Promise<boolean> => (await postmasterPid()) === null;

/** Another process that has the server open until it is killed or told to stop. */
async function holder(): Promise<{ child: ChildProcess; exited: Promise<unknown> }> {
  const child = fork(HOLDER, [dataDir], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  await once(child, "message");
  return { child, exited: once(child, "exit") };
}

test("keeps its data over a restart, which is quick", async () => {
  const first = await open();
  await query(first.url, "CREATE TABLE kept (n int)");
  await first.stop();
  expect(await isStopped()).toBe(true);
  const before = performance.now();
  const second = await open();
  expect(performance.now() - before).toBeLessThan(3_000);
  expect(await query(second.url, "SELECT count(*)::int AS n FROM kept")).toEqual([{ n: 0 }]);
  await second.stop();
});

test("is durable, listens on loopback alone, and needs the random password of its private file", async () => {
  const server = await open();
  const [settings] = await query(
    server.url,
    `SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS pages,
            current_setting('synchronous_commit') AS sync, current_setting('listen_addresses') AS address,
            current_setting('unix_socket_directories') AS sockets`,
  );
  expect(settings).toEqual({ fsync: "on", pages: "on", sync: "on", address: "127.0.0.1", sockets: "" });
  const wrong = new URL(server.url);
  expect(wrong.password.length).toBeGreaterThanOrEqual(32);
  wrong.password = "password";
  await expect(query(wrong.href, "SELECT 1")).rejects.toThrow(/password authentication failed/);
  expect((await stat(join(dataDir, "postgres", "connection.json"))).mode & 0o777).toBe(0o600);
  expect((await stat(join(dataDir, "postgres"))).mode & 0o777).toBe(0o700);
  await server.stop();
});

test("a server whose process was killed is adopted by the next start", async () => {
  const { child, exited } = await holder();
  const pid = await postmasterPid();
  child.kill("SIGKILL");
  await exited;
  expect(await postmasterPid()).toBe(pid);
  const adopted = await open();
  expect(await postmasterPid()).toBe(pid);
  await adopted.stop();
  expect(await isStopped()).toBe(true);
});

test("stays up while somebody uses it, and stops with its last user", async () => {
  const first = await open();
  const second = await open();
  expect(second.url).toBe(first.url);
  await first.stop();
  await query(second.url, "SELECT 1");
  await second.stop();
  expect(await isStopped()).toBe(true);
});

test("many starts and stops at once never leave a user without its server", async () => {
  const users = Array.from({ length: 4 }, async () => {
    for (let turn = 0; turn < 2; turn++) {
      const server = await open();
      expect(await query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
      await server.stop();
    }
  });
  await Promise.all(users);
  expect(await isStopped()).toBe(true);
});

test("one serve a data folder", async () => {
  const first = await open();
  const second = await open();
  expect(await first.claimServe()).toBe(true);
  expect(await second.claimServe()).toBe(false);
  await first.stop();
  expect(await second.claimServe()).toBe(true);
  await second.stop();
});

test("recovers from a power cut whose process id belongs to another program by now", async () => {
  await writeFile(join(dataDir, "postgres", "cluster", "postmaster.pid"), `${process.pid}\n${dataDir}\n`);
  const server = await open();
  expect(await query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
  await server.stop();
});

test("recovers from the server itself being killed, also while it is used", async () => {
  const server = await open();
  await query(server.url, "CREATE TABLE survived (n int)");
  const pid = await postmasterPid();
  if (pid === null) throw new Error("it does not run");
  process.kill(pid, "SIGKILL");
  const rows = await eventually(() => query(server.url, "SELECT count(*)::int AS n FROM survived").catch(() => null));
  expect(rows).toEqual([{ n: 0 }]);
  expect(await postmasterPid()).not.toBe(pid);
  await server.stop();
  expect(await isStopped()).toBe(true);
});

test("moves to another port when a stranger has taken its own", async () => {
  const before = await open();
  const { port } = new URL(before.url);
  await before.stop();
  const stranger = createServer((socket) => socket.end("hello\n"));
  await new Promise<void>((resolve) => stranger.listen(Number(port), "127.0.0.1", resolve));
  const after = await open();
  expect(new URL(after.url).port).not.toBe(port);
  expect(await query(after.url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
  await after.stop();
  stranger.close();
});

test("says so when a stranger takes its port while it is down, because its users hold the old address", async () => {
  const server = await open();
  const { port } = new URL(server.url);
  const pid = await postmasterPid();
  if (pid === null) throw new Error("it does not run");
  const stranger = createServer((socket) => socket.end("hello\n"));
  process.kill(pid, "SIGKILL");
  await eventually(
    () =>
      new Promise<true | null>((resolve) => {
        stranger.once("error", () => resolve(null)); // the killed server's socket is still being closed
        stranger.listen(Number(port), "127.0.0.1", () => resolve(true));
      }),
  );
  expect(await server.moved).toBeInstanceOf(Error);
  await server.stop();
  stranger.close();
  expect(await isStopped()).toBe(true);
});

test("a copied data folder gets a server of its own, never the original's", async () => {
  const copy = join(root, "copy");
  await cp(dataDir, copy, { recursive: true, preserveTimestamps: true });
  if (process.getuid?.() === 0) {
    const { uid, gid } = await stat(join(dataDir, "postgres"));
    await chownTree(join(copy, "postgres"), uid, gid);
  }
  const original = await open();
  const copied = await open(copy);
  const [row] = await query(copied.url, "SELECT current_setting('data_directory') AS folder");
  expect(row?.["folder"]).toBe(join(copy, "postgres", "cluster"));
  expect(copied.url).not.toBe(original.url);
  await copied.stop();
  await original.stop();
});

test("says what to do when the data folder cannot be used", async () => {
  const file = join(root, "a-file");
  await writeFile(file, "");
  await expect(open(join(file, "data"))).rejects.toThrow(/cannot be used: it is not a folder[^]*DATA_DIR/);
  await expect(open("/sys/data")).rejects.toThrow(/cannot be used[^]*Set DATA_DIR/);
});

test("a first start that was killed half-way leaves nothing that matters", async () => {
  const folder = join(root, "half");
  const child = fork(HOLDER, [folder], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  const exited = once(child, "exit");
  await eventually(async () => (await stat(join(folder, `postgres.new-${child.pid}`)).catch(() => null)) !== null);
  child.kill("SIGKILL");
  await exited;
  const server = await open(folder);
  expect(await query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
  await server.stop();
});

async function chownTree(folder: string, uid: number, gid: number): Promise<void> {
  const { chown, readdir } = await import("node:fs/promises");
  await chown(folder, uid, gid);
  for (const entry of await readdir(folder, { recursive: true })) await chown(join(folder, entry), uid, gid);
}
