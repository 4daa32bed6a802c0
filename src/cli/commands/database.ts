/** `dream-engine database migrate|grant|roles`: for separate deployments, where the processes do not own the database. */
import { randomBytes } from "node:crypto";

import { type Command, InvalidArgumentError } from "commander";

import type { Sql } from "#platform/database.ts";
import { errorCode } from "#platform/error-code.ts";
import { createLog } from "#platform/log.ts";
import { grantRights, type Part, PARTS, withdrawRights } from "#platform/roles.ts";
import { openQueues } from "#queue/open-queues.ts";
import { grantQueue, withdrawQueue } from "#queue/postgres.ts";

import { withDatabase } from "../context.ts";
import { makeLoginRole, readPasswords } from "../login-roles.ts";
import { UserError } from "../user-error.ts";

/** A worker needs the database where the queue is in it. */
const GRANTED = [...PARTS, "worker"] as const;
type Granted = (typeof GRANTED)[number];

/** Hears the queue's signals, for which no right is needed, and looks at no job. */
const LISTENS_ALONE: Partial<Record<Part, true>> = { notifier: true };

export function addDatabase(program: Command): void {
  const database = program.command("database").description("the schema and who may do what in it; run as its owner");
  database
    .command("migrate")
    .description("bring the schema, and the queue's where there is no Redis, to the newest version")
    .action(migrateAndSay);
  database
    .command("grant")
    .description("give a login role exactly the rights that one process needs; again after each migration")
    .argument("<role>", "an existing login role of this server, for this process alone")
    .requiredOption("--as <process>", GRANTED.join(", "), parseGranted)
    .action(grant);
  database
    .command("roles")
    .description(
      "migrate, and make the login role of every process with its password and rights; again at each upgrade\n" +
        "(passwords from GATEWAY_DB_PASSWORD, SETTLEMENT_DB_PASSWORD and so on)",
    )
    .option("--prefix <text>", "what the roles' names begin with", parsePrefix, "dream_")
    .action(makeRoles);
}

async function migrateAndSay(): Promise<void> {
  await migrateAll();
  console.log("The schema is at its newest version. Run `database grant` again for the roles of your processes.");
}

async function migrateAll(): Promise<void> {
  await withDatabase(
    async ({ url, owned }, { REDIS_URL }) => {
      requireOwner(owned);
      if (REDIS_URL !== undefined) return;
      const log = createLog("cli", "warn");
      const queues = await openQueues({ redis_url: undefined, database_url: url, migrate: true, log });
      await queues.stop();
    },
    { upgrade: true },
  );
}

async function grant(role: string, { as: granted }: { as: Granted }): Promise<void> {
  const onQueue = await withDatabase(async ({ db, owned }) => {
    requireOwner(owned);
    await refuseAboveRights(db, role);
    return await db.transaction((tx) => (granted === "worker" ? grantWorker(tx, role) : grantPart(tx, role, granted)));
  }).catch((error: unknown) => {
    if (errorCode(error) !== "42704") throw error;
    throw new UserError(`There is no role ${role}; make it first: CREATE ROLE ${role} LOGIN PASSWORD '…'`, {
      cause: error,
    });
  });
  console.log(
    granted === "worker"
      ? `${role} may take jobs from the queue in this database, and nothing else here.`
      : `${role} may do what a ${granted} has to${onQueue ? ", the queue in this database included" : ""}.`,
  );
}

/** For a setup step that runs before the processes start: whatever was there before, afterwards it is as it should be. */
async function makeRoles({ prefix }: { prefix: string }): Promise<void> {
  const onRedis = (process.env["REDIS_URL"] ?? "") !== "";
  // On Redis a worker needs no database.
  const passwords = readPasswords(process.env, onRedis ? PARTS : GRANTED);
  await migrateAll();
  await withDatabase(async ({ db }) => {
    for (const [process, password] of passwords) {
      const role = `${prefix}${process}`;
      // Of one that is refused nothing is changed, its password neither.
      await db.transaction(async (tx) => {
        await makeLoginRole(tx, role, password, randomBytes);
        await refuseAboveRights(tx, role);
        await (process === "worker" ? grantWorker(tx, role) : grantPart(tx, role, process));
      });
      console.log(`${role}: the ${process}'s role`);
    }
  });
}

/** With the queue on Redis there is no such schema, or one that nobody uses any more. */
async function grantPart(tx: Sql, role: string, part: Part): Promise<boolean> {
  await grantRights(tx, role, part);
  if (!(await hasQueue(tx))) return false;
  await (LISTENS_ALONE[part] ? withdrawQueue : grantQueue)(tx, role);
  return !LISTENS_ALONE[part];
}

/** A worker reads jobs that anybody may have sent: no table of ours is for it. */
async function grantWorker(tx: Sql, role: string): Promise<boolean> {
  if (!(await hasQueue(tx))) {
    throw new UserError(
      "There is no queue in this database. On Redis a worker needs no role here; else make the queue first, without\n" +
        "REDIS_URL: dream-engine database migrate",
    );
  }
  await withdrawRights(tx, role);
  await grantQueue(tx, role);
  return true;
}

async function hasQueue(tx: Sql): Promise<boolean> {
  const [queue] = await tx.query("SELECT FROM pg_namespace WHERE nspname = 'bullmq'");
  return queue !== undefined;
}

/** Rights mean nothing to a role that can take others: a superuser, or one that may become the owner. */
async function refuseAboveRights(sql: Sql, role: string): Promise<void> {
  const [row] = await sql.query<{ above: boolean }>(
    `SELECT rolsuper OR rolbypassrls OR rolcreaterole
            OR pg_has_role(oid, (SELECT relowner FROM pg_class WHERE oid = 'ledger_entries'::regclass), 'MEMBER') AS above
       FROM pg_roles WHERE rolname = $1`,
    [role],
  );
  if (row?.above !== true) return;
  throw new UserError(
    `${role} has more rights than any process should: it is a superuser, may create roles, bypasses row security or is\n` +
      "a member of the owner. Make a plain one: CREATE ROLE … LOGIN PASSWORD '…'",
  );
}

function requireOwner(owned: boolean): void {
  if (!owned) throw new UserError("This needs the owner of the schema: set DATABASE_URL to the owner's.");
}

function parseGranted(text: string): Granted {
  const granted = GRANTED.find((name) => name === text);
  if (granted !== undefined) return granted;
  throw new InvalidArgumentError(`expected one of ${GRANTED.join(", ")}`);
}

function parsePrefix(text: string): string {
  if (/^[a-z_][a-z0-9_]{0,39}$/.test(text)) return text;
  throw new InvalidArgumentError("expected lower case letters, digits and _, at most 40");
}
