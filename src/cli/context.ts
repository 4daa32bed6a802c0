/** What every command is put together from: configuration, log, database, blobs. */
import { fileURLToPath } from "node:url";

import type { BlobStore } from "#blobs/blob-store.ts";
import { blobUrlOf } from "#blobs/blob-url.ts";
import { openBlobs as openBlobStore } from "#blobs/open-blobs.ts";
import { systemClock } from "#platform/clock.ts";
import { type Config, readConfig } from "#platform/config.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { errorCode } from "#platform/error-code.ts";
import { type Service, stopAll, untilToldToStop } from "#platform/lifecycle.ts";
import { createLog, type Log } from "#platform/log.ts";
import { migrate, type SchemaState, schemaState } from "#platform/migrate.ts";
import { isOwner, missingRights, type Part } from "#platform/roles.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";

import { type EmbeddedPostgres, openEmbeddedPostgres } from "./embedded-postgres.ts";
import { makeFolders } from "./folders.ts";
import { UserError } from "./user-error.ts";

/** The parts of a process in the order of their start; `stopAll` stops them the other way round. */
export type Parts = [name: string, service: Service][];

export interface OpenDatabase {
  readonly db: Database;
  /** Holds a password: never log it. */
  readonly url: string;
  /** Null when DATABASE_URL names a server. */
  readonly embedded: EmbeddedPostgres | null;
  /** Whether the schema belongs to the role that we connect as; any other has what it was granted (platform/roles.ts). */
  readonly owned: boolean;
}

export interface OpenOptions {
  readonly onStep?: (step: string) => void;
  /**
   * Whether the owner brings a schema that is behind to the newest version. Not for commands: a server of the version
   * before may be running on it. An empty database gets its schema from anybody.
   */
  readonly upgrade?: boolean;
}

/**
 * The database of DATABASE_URL, or the embedded one, at exactly the schema that this version knows. Adds what must be
 * stopped to `parts`. Throws UserError that says what to do where the schema is another.
 */
export async function openDatabase(
  config: Config,
  log: Log,
  parts: Parts,
  { onStep = () => undefined, upgrade = false }: OpenOptions = {},
): Promise<OpenDatabase> {
  const embedded =
    config.DATABASE_URL === undefined ? await openEmbeddedPostgres({ dataDir: config.DATA_DIR, log, onStep }) : null;
  if (embedded) parts.push(["embedded postgres", embedded]);
  const url = embedded?.url ?? requireDatabaseUrl(config);
  const db = createDatabase({ url, log });
  parts.push(["database", db]);
  const owned = await isOwner(db).catch((error: unknown) => {
    throw unreachable(error) ?? error;
  });
  const { empty, missing, unknown } = await readSchemaState(db);
  if (unknown.length > 0) {
    throw new UserError(
      `A newer version of Dream Engine has migrated this database: this one does not know ${unknown.join(", ")}.\n` +
        "Use that version, or one after it.",
    );
  }
  if (missing.length > 0) {
    if (!owned) throw mayNotMigrate(empty, missing);
    if (!empty && !upgrade) throw behind(missing);
    await migrate(url, log);
  }
  return { db, url, embedded, owned };
}

async function readSchemaState(db: Database): Promise<SchemaState> {
  return await schemaState(db).catch((error: unknown) => {
    // 42P01: to a role that may not use the schema, nothing in it exists.
    if (!["42501", "42P01"].includes(errorCode(error) ?? "")) throw error;
    throw new UserError(
      "The role in DATABASE_URL has no rights in this database. As its owner, run\n" +
        "  dream-engine database grant <role> --as gateway|settlement|scheduler|runner|notifier\n" +
        "for a role of that process alone.",
      { cause: error },
    );
  });
}

function mayNotMigrate(empty: boolean, missing: readonly string[]): UserError {
  const what = empty ? "has no schema yet" : `lacks ${missing.join(", ")}`;
  return new UserError(
    `This database ${what}, and the role in DATABASE_URL may not migrate it. As the owner of the schema, run\n` +
      "  dream-engine database migrate",
  );
}

function behind(missing: readonly string[]): UserError {
  return new UserError(
    `This database is of an older version: it lacks ${missing.join(", ")}. Commands leave it as it is, because a server\n` +
      "of that version may be running on it. `npm start` of this version brings it up to date, or\n" +
      "  dream-engine database migrate",
  );
}

/** A role that was granted its rights by an older version of this program may lack what this one needs. */
async function requireRights(db: Database, part: Part): Promise<void> {
  const missing = await missingRights(db, part);
  if (missing.length === 0) return;
  const [row] = await db.query<{ role: string }>("SELECT current_user AS role");
  const lacks = `The role in DATABASE_URL may not do what a ${part} has to: it lacks ${missing.join("; ")}.\n`;
  const other = await otherPartOf(db, part);
  throw new UserError(
    other === null
      ? `${lacks}As the database's owner, run\n  dream-engine database grant ${row?.role} --as ${part}`
      : `${lacks}${row?.role} is the role of a ${other}, which would lose its rights to a grant: give this ${part} a role of\n` +
          "its own. As the database's owner, make one (CREATE ROLE … LOGIN PASSWORD '…') and run\n" +
          `  dream-engine database grant <that role> --as ${part}`,
  );
}

/**
 * Whose role this is. A settlement's rights say nothing: a gateway's and a scheduler's contain them, so a grant takes
 * none of them away, and a gateway's role that waits for a new grant after a migration has them, too.
 */
async function otherPartOf(db: Database, part: Part): Promise<Part | null> {
  for (const other of ["gateway", "scheduler"] as const) {
    if (other !== part && (await missingRights(db, other)).length === 0) return other;
  }
  return null;
}

/** The database that separate deployments share, for a role that may do what that part does. */
export async function openSharedDatabase(part: Part, config: Config, log: Log, parts: Parts): Promise<OpenDatabase> {
  requireDatabaseUrl(config);
  const open = await openDatabase(config, log, parts, { upgrade: true });
  if (!open.owned) await requireRights(open.db, part);
  return open;
}

export type Shared = Omit<OpenDatabase, "embedded"> & { readonly queues: QueueSystem };

/** That and the queue: what gateway, scheduler, settlement worker and runner share. */
export async function openShared(part: Part, config: Config, log: Log, parts: Parts): Promise<Shared> {
  const { db, url, owned } = await openSharedDatabase(part, config, log, parts);
  const queues = await openQueues({ redis_url: config.REDIS_URL, database_url: url, migrate: owned, log });
  parts.push(["queues", queues]);
  return { db, url, owned, queues };
}

/** What a person can solve of a database that does not let us in; null for anything else. */
function unreachable(error: unknown): UserError | null {
  const code = errorCode(error) ?? "";
  const reasons: Record<string, string> = {
    ECONNREFUSED: "nothing listens there",
    ENOTFOUND: "no such host",
    EAI_AGAIN: "its host name cannot be resolved now",
    ETIMEDOUT: "it does not answer",
    "28P01": "it refuses the password",
    "28000": "it refuses the user",
    "3D000": "it has no such database",
  };
  const reason = reasons[code];
  if (reason === undefined) return null;
  return new UserError(`The PostgreSQL of DATABASE_URL cannot be used: ${reason}.`, { cause: error });
}

/** For roles of a separate deployment, which share a database that is reached by its address. */
function requireDatabaseUrl(config: Config): string {
  if (config.DATABASE_URL !== undefined) return config.DATABASE_URL;
  throw new UserError(
    "This role runs beside others on a shared database: set DATABASE_URL to it (and REDIS_URL, BLOB_URL).\n" +
      "For everything in one process group, run `serve` instead.",
  );
}

export async function openBlobs(config: Config): Promise<BlobStore> {
  const url = blobUrlOf(config);
  // Customers' videos are not for the other users of this machine. A folder that exists keeps its mode.
  if (url.startsWith("file:")) await makeFolders(fileURLToPath(url), 0o700);
  return openBlobStore(config, systemClock);
}

/** For commands that do one thing and end: quiet unless asked, and everything is closed whatever happens. */
export async function withDatabase<T>(
  run: (open: OpenDatabase, config: Config) => Promise<T>,
  options: Pick<OpenOptions, "upgrade"> = {},
): Promise<T> {
  const config = readConfig(process.env);
  const log = createLog("cli", process.env["LOG_LEVEL"] === undefined ? "warn" : config.LOG_LEVEL);
  const parts: Parts = [];
  try {
    return await run(await openDatabase(config, log, parts, options), config);
  } catch (error) {
    throw forbiddenByRights(error) ?? error;
  } finally {
    await stopAll(parts, log);
  }
}

/** What a person who may use the owner's DATABASE_URL can solve; null for anything else. */
export function forbiddenByRights(error: unknown): UserError | null {
  if (!(error instanceof Error) || errorCode(error) !== "42501") return null;
  return new UserError(
    `The role in DATABASE_URL may not do this (${error.message}). Run the command with the owner's DATABASE_URL.`,
    { cause: error },
  );
}

/** For one role of a separate deployment: runs until it is told to stop, or until a part fails for good. */
export async function runRole(
  role: string,
  start: (config: Config, log: Log, parts: Parts) => Promise<{ readonly failed?: Promise<Error> } | void>,
): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog(role, config.LOG_LEVEL);
  const told = untilToldToStop();
  const parts: Parts = [];
  try {
    const started = await start(config, log, parts);
    log.info({ role }, "running");
    const reason = await Promise.race([told, ...(started?.failed ? [started.failed] : [])]);
    if (reason instanceof Error) throw reason;
    log.info({ signal: reason }, "stopping");
  } finally {
    await stopAll(parts, log);
  }
}
