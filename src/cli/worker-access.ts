/**
 * What an inference worker is given: nothing but what it needs. On Redis it holds no database credentials; on the
 * PostgreSQL queue it gets a role of its own that sees the `bullmq` schema alone, so it cannot reach the ledger.
 */
import { blobUrlOf } from "#blobs/blob-url.ts";
import type { RandomBytes } from "#contract/ids.ts";
import type { Config } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { errorCode } from "#platform/error-code.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import { grantQueue } from "#queue/postgres.ts";

import { UserError } from "./user-error.ts";

/** Makes the role of this database's workers (or finds it) and returns the URL they connect with. */
export async function workerDatabaseUrl(db: Database, ownerUrl: string, random: RandomBytes): Promise<string> {
  // Roles belong to the whole server, so the name says which database it is for.
  const [row] = await db.query<{ role: string }>(
    "SELECT 'dream_worker_' || oid AS role FROM pg_database WHERE datname = current_database()",
  );
  if (!row) throw new Error("the current database is not in pg_database");
  const password = (await sharedSecret(db, "worker database role", random)).toString("base64url");
  await createRole(db, row.role, password);
  await grantQueue(db, row.role);
  const url = new URL(ownerUrl);
  url.username = row.role;
  url.password = password;
  return url.href;
}

async function createRole(db: Database, role: string, password: string): Promise<void> {
  // Both values are ours and hold no quote: a role name made of an oid, and base64url.
  try {
    await db.query(`CREATE ROLE ${role} LOGIN PASSWORD '${password}' NOSUPERUSER NOCREATEDB NOCREATEROLE`);
  } catch (error) {
    const code = errorCode(error);
    // It is there (42710; 23505 when another process makes it now). A restored database may bring another password.
    if (code === "42710" || code === "23505") {
      await db.query(`ALTER ROLE ${role} PASSWORD '${password}'`);
      return;
    }
    if (code !== "42501") throw error;
    throw new UserError(
      "The role in DATABASE_URL may not create roles, and inference workers need one that cannot read the ledger.\n" +
        "Give it CREATEROLE, or set REDIS_URL so that workers need no database.",
      { cause: error },
    );
  }
}

/** The whole environment of a worker process. `queueDatabaseUrl` is ignored on Redis. */
export function workerEnv(config: Config, model: string, queueDatabaseUrl: string | null): Record<string, string> {
  const inherited = Object.fromEntries(
    ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"].flatMap((name) => {
      const value = process.env[name];
      return value === undefined ? [] : [[name, value] as const];
    }),
  );
  return {
    ...inherited,
    MODEL: model,
    ...(config.REDIS_URL === undefined ? {} : { REDIS_URL: config.REDIS_URL }),
    ...(config.REDIS_URL === undefined && queueDatabaseUrl !== null ? { DATABASE_URL: queueDatabaseUrl } : {}),
    BLOB_URL: blobUrlOf(config),
    MODELS_DIR: config.MODELS_DIR,
    ORT_PROVIDERS: config.ORT_PROVIDERS.join(","),
    ...(config.FFMPEG_PATH === undefined ? {} : { FFMPEG_PATH: config.FFMPEG_PATH }),
    LOG_LEVEL: config.LOG_LEVEL,
  };
}
