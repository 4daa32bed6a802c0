/** The database roles that `serve` makes for its own parts and workers, each with rights of its own and no others. */
import type { RandomBytes } from "#contract/ids.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { errorCode } from "#platform/error-code.ts";
import type { Log } from "#platform/log.ts";
import { grantRights, type Part } from "#platform/roles.ts";
import { scramVerifier } from "#platform/scram.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import { grantQueue } from "#queue/postgres.ts";

import type { Parts } from "./context.ts";
import { UserError } from "./user-error.ts";

interface Owner {
  readonly db: Database;
  /** Of the schema's owner; holds its password. */
  readonly url: string;
  readonly random: RandomBytes;
}

/** Most connections of each part. 8 settlements run at once; the scheduler holds one for its lock all the time. */
const POOL_MAX: Readonly<Record<Part, number>> = { gateway: 10, settlement: 10, scheduler: 8, runner: 6, notifier: 4 };

/**
 * This part's own pool on the database, under a role that may do what the part does and no more; stopped with `parts`.
 * An owner that may not create roles runs it under its own name, as separate deployments may, too.
 */
export async function openAs(part: Part, owner: Owner, log: Log, parts: Parts): Promise<Database> {
  let url = owner.url;
  try {
    const role = await ensureRole(part, owner);
    await owner.db.transaction((tx) => grantRights(tx, role.name, part));
    ({ url } = role);
  } catch (error) {
    if (!(error instanceof RolesForbidden)) throw error;
    log.warn({ part }, "the role in DATABASE_URL may not create roles: this part runs under it, with its rights");
  }
  const db = createDatabase({ url, log, poolMax: POOL_MAX[part] });
  parts.push([`database of the ${part}`, db]);
  return db;
}

/** The URL that inference workers connect to their queue with: it shows them the `bullmq` schema alone. */
export async function workerDatabaseUrl(owner: Owner): Promise<string> {
  const role = await ensureRole("worker", owner).catch((error: unknown) => {
    if (!(error instanceof RolesForbidden)) throw error;
    throw new UserError(
      "The role in DATABASE_URL may not create roles, and inference workers need one that cannot read the ledger.\n" +
        "Give it CREATEROLE, or set REDIS_URL so that workers need no database.",
      { cause: error },
    );
  });
  await grantQueue(owner.db, role.name);
  return role.url;
}

class RolesForbidden extends Error {}

/** "role" in ASCII. */
const ROLE_LOCK = 0x726f6c65;

/** Makes the role of this database for such a process, or finds it. */
async function ensureRole(
  kind: Part | "worker",
  { db, url: ownerUrl, random }: Owner,
): Promise<{ name: string; url: string }> {
  // Roles belong to the whole server, so the name says which database it is for.
  const [row] = await db.query<{ name: string }>(
    `SELECT 'dream_${kind}_' || oid AS name FROM pg_database WHERE datname = current_database()`,
  );
  if (!row) throw new Error("the current database is not in pg_database");
  // Names that end like this are hidden from every process's role (migration 0002).
  const password = (await sharedSecret(db, `${kind} database role`, random)).toString("base64url");
  await createRole(db, row.name, scramVerifier(password, random));
  const url = new URL(ownerUrl);
  url.username = row.name;
  url.password = password;
  return { name: row.name, url: url.href };
}

async function createRole(db: Database, role: string, verifier: string): Promise<void> {
  // Both values are ours and hold no quote: a role name made of an oid, and base64.
  try {
    await db.transaction(async (tx) => {
      // Several processes that start at once would break each other.
      await tx.query("SELECT pg_advisory_xact_lock($1)", [ROLE_LOCK]);
      const [found] = await tx.query("SELECT FROM pg_roles WHERE rolname = $1", [role]);
      if (!found) await tx.query(`CREATE ROLE ${role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE`);
      // Also of one that is there: a restored database may bring another password.
      await tx.query(`ALTER ROLE ${role} PASSWORD '${verifier}'`);
    });
  } catch (error) {
    if (errorCode(error) !== "42501") throw error;
    throw new RolesForbidden("this role may not create roles", { cause: error });
  }
}
