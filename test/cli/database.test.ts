/** Separate deployments on roles of their own: what the owner runs, and what a process says that lacks something. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import { createDatabase } from "#platform/database.ts";
import { PARTS } from "#platform/roles.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import { predictQueue } from "#queue/queues.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

import { eventually } from "../queue/test-queue.ts";
import { run, type Ran, start } from "./command.ts";

vi.setConfig({ testTimeout: 60_000 });

let database: TestDatabase;
let folder: string;
let asOwner: Record<string, string>;
/** Roles belong to the whole server. */
const role = (part: string): string => `dba_${part}_${suffix}`;
const suffix = randomBytes(4).toString("hex");

beforeAll(async () => {
  database = await createTestDatabase();
  await database.db.query("DROP SCHEMA public CASCADE");
  await database.db.query("CREATE SCHEMA public");
  folder = await mkdtemp(join(tmpdir(), "dream-roles-"));
  asOwner = {
    DATABASE_URL: database.url,
    DATA_DIR: folder,
    BLOB_URL: `file://${folder}/blobs`,
    MODELS_DIR: resolve("models"),
    PORT: "0",
  };
  for (const part of [...PARTS, "worker", "nobody"]) {
    await database.db.query(`CREATE ROLE ${role(part)} LOGIN PASSWORD 'test'`);
  }
});
afterAll(async () => {
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

function as(part: string): Record<string, string> {
  const url = new URL(database.url);
  url.username = role(part);
  url.password = "test";
  return { ...asOwner, DATABASE_URL: url.href };
}

async function refused(args: readonly string[], env: Record<string, string>): Promise<string> {
  const { code, stderr, stdout }: Ran = await run(args, env);
  expect(code, stdout).toBe(1);
  return stderr;
}

test("where nobody has migrated yet, a role that may not is told what the owner runs", async () => {
  for (const args of [["settlement"], ["database", "migrate"]]) {
    const message = await refused(args, as("nobody"));
    expect(message).toContain("has no schema yet");
    expect(message).toContain("As the owner of the schema, run\n  dream-engine database migrate");
    expect(message).not.toMatch(/^ +at /m);
  }
});

test("the owner migrates, the schema and the queue's", async () => {
  const { code, stdout, stderr } = await run(["database", "migrate"], asOwner);
  expect(code, stderr).toBe(0);
  expect(stdout).toContain("newest version");
  const schemas = await database.db.query("SELECT nspname FROM pg_namespace WHERE nspname = 'bullmq'");
  expect(schemas).toHaveLength(1);
});

test("a role without rights is told what its owner has to run", async () => {
  expect(await refused(["gateway"], as("nobody"))).toContain("database grant <role> --as gateway|settlement|scheduler");
});

test("grant refuses a role that is above all rights, one that is not there, and a process that is none", async () => {
  const superuser = new URL(database.url).username;
  expect(await refused(["database", "grant", superuser, "--as", "gateway"], asOwner)).toContain("more rights than any");
  expect(await refused(["database", "grant", "no_such_role", "--as", "gateway"], asOwner)).toContain("CREATE ROLE");
  expect(await refused(["database", "grant", role("gateway"), "--as", "owner"], asOwner)).toContain("expected one of");
});

test("only the owner migrates and grants", async () => {
  const { code, stderr } = await run(["database", "grant", role("gateway"), "--as", "gateway"], asOwner);
  expect(code, stderr).toBe(0);
  expect(await refused(["database", "migrate"], as("gateway"))).toContain("owner");
  expect(await refused(["database", "grant", role("nobody"), "--as", "gateway"], as("gateway"))).toContain("owner");
  expect(await refused(["serve"], as("gateway"))).toContain("has to name the schema's owner");
});

test("a worker's role may take jobs where the queue is here, and sees nothing else", async () => {
  const url = as("worker")["DATABASE_URL"] ?? "";
  const open = () => createPostgresQueues({ url, log: silentLog, migrate: false });
  await expect(open()).rejects.toThrow("database grant <role> --as worker");
  // What it had as another process goes.
  await database.db.query(`GRANT SELECT ON ledger_entries TO ${role("worker")}`);
  const { code, stdout, stderr } = await run(["database", "grant", role("worker"), "--as", "worker"], asOwner);
  expect(code, stderr).toBe(0);
  expect(stdout).toContain("nothing else here");

  const queues = await open();
  const db = createDatabase({ url, log: silentLog });
  try {
    expect(await predictQueue(queues, "pusht-small", "realtime").counts()).toMatchObject({ waiting: 0 });
    await expect(db.query("SELECT FROM public.ledger_entries")).rejects.toThrow("permission denied");
  } finally {
    await db.stop();
    await queues.stop();
  }
});

describe.for([...PARTS])("%s", (part) => {
  test("runs under a role that was granted its rights, and under no other's", async () => {
    const { code, stderr } = await run(["database", "grant", role(part), "--as", part], asOwner);
    expect(code, stderr).toBe(0);

    const { child, ...output } = start([part], as(part));
    const exited = once(child, "exit");
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`it ended:\n${output.stderr()}`);
      return output.stderr().includes('"msg":"running"') ? true : undefined;
    }, 30_000);
    child.kill("SIGTERM");
    expect(await exited).toEqual([0, null]);
    expect(output.stderr()).not.toMatch(/permission denied/);
  });

  test("says which right it lacks when an older version granted them", async () => {
    await database.db.query(`REVOKE ALL ON rollouts FROM ${role(part)}`);
    const message = await refused([part], as(part));
    expect(message).toContain("SELECT on rollouts");
    expect(message).toContain(`database grant ${role(part)} --as ${part}`);
  });
});

test("a notifier's role reaches no job, whatever it was before", async () => {
  await database.db.query(`GRANT USAGE ON SCHEMA bullmq TO ${role("notifier")}`);
  await database.db.query(`GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA bullmq TO ${role("notifier")}`);
  const { code, stdout, stderr } = await run(["database", "grant", role("notifier"), "--as", "notifier"], asOwner);
  expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: `${role("notifier")} may do what a notifier has to.\n` });
  const db = createDatabase({ url: as("notifier")["DATABASE_URL"] ?? "", log: silentLog });
  try {
    await expect(db.query("SELECT FROM bullmq.job")).rejects.toThrow("permission denied for schema bullmq");
    const tables = await db.query(
      `SELECT relname FROM pg_class WHERE relnamespace = 'bullmq'::regnamespace AND relkind = 'r'
          AND has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE')`,
    );
    expect(tables).toEqual([]);
  } finally {
    await db.stop();
  }
});

test("a role of another process is not to be given away from it", async () => {
  await run(["database", "grant", role("scheduler"), "--as", "scheduler"], asOwner);
  const message = await refused(["gateway"], as("scheduler"));
  expect(message).toContain(`${role("scheduler")} is the role of a scheduler, which would lose its rights`);
  expect(message).not.toContain(`database grant ${role("scheduler")}`);
});

test("a process that may not migrate says which migration is missing and what to run", async () => {
  await database.db.query("DELETE FROM schema_migrations WHERE name = '0003_jobs_and_datasets'");
  const message = await refused(["settlement"], as("settlement"));
  expect(message).toContain("lacks 0003_jobs_and_datasets");
  expect(message).toContain("dream-engine database migrate");
});
