/**
 * The files of the embedded PostgreSQL: `DATA_DIR/postgres/cluster` and, beside it, how to reach the server. A cluster
 * is made under another name and renamed when it is complete, so a start that was killed half-way leaves no trace that
 * matters, and of two first starts at once one wins.
 */
import { randomBytes } from "node:crypto";
import { chown, mkdir, readdir, readFile, rename, rm, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Type, type Static } from "typebox";
import { Compile } from "typebox/compile";

import { errorCode } from "#platform/error-code.ts";

import { makeFolders } from "./folders.ts";
import { freePort } from "./ports.ts";
import { findPostgres, type PostgresBinaries } from "./postgres-binaries.ts";
import { UserError } from "./user-error.ts";

const Connection = Type.Object(
  { port: Type.Integer({ minimum: 1, maximum: 65_535 }), password: Type.String({ minLength: 16 }) },
  { additionalProperties: false },
);
export type Connection = Static<typeof Connection>;
const connectionSchema = Compile(Connection);

/** Superuser of the cluster and owner of everything in it. */
const OWNER = "dream_engine";
const DATABASE = "postgres";

/** A fresh cluster is 40 MB, its write-ahead log grows to 1 GB before it is recycled under load. */
const FREE_BYTES_MIN = 300 * 1024 * 1024;

export interface Cluster {
  readonly folder: string;
  readonly binaries: PostgresBinaries;
  readConnection(): Promise<Connection>;
  /** For a start on another port, when the remembered one was taken meanwhile. */
  savePort(port: number): Promise<Connection>;
}

export function urlOf({ port, password }: Connection): string {
  return `postgres://${OWNER}:${password}@127.0.0.1:${port}/${DATABASE}`;
}

/** Finds the cluster of this data folder, or makes it (about three seconds). */
export async function createCluster(dataDir: string, onStep: (step: string) => void): Promise<Cluster> {
  const home = join(dataDir, "postgres");
  try {
    await makeFolders(dataDir, 0o711);
    // 0711 and not 0700: as root, PostgreSQL runs as another user who must pass through.
    await writeFile(join(dataDir, ".writable"), "");
    await rm(join(dataDir, ".writable"), { force: true }); // another start may be looking, too
  } catch (error) {
    throw unusable(dataDir, error);
  }
  const binaries = await findPostgres(dataDir);
  if (!(await contains(home, "cluster"))) {
    onStep("making the database (first start)");
    await initialise(dataDir, home, binaries);
  }
  const file = join(home, "connection.json");
  const readConnection = async (): Promise<Connection> => {
    const text = await readFile(file, "utf8").catch((error: unknown) => {
      throw new UserError(`Cannot read ${file}; the embedded database cannot be opened without it.`, { cause: error });
    });
    const value: unknown = JSON.parse(text);
    if (!connectionSchema.Check(value)) throw new UserError(`${file} was changed: expected {"port", "password"}.`);
    return value;
  };
  return {
    folder: join(home, "cluster"),
    binaries,
    readConnection,
    async savePort(port) {
      const connection = { ...(await readConnection()), port };
      await writeConnection(home, connection);
      return connection;
    },
  };
}

async function initialise(dataDir: string, home: string, binaries: PostgresBinaries): Promise<void> {
  const { bavail, bsize } = await statfs(dataDir);
  if (bavail * bsize < FREE_BYTES_MIN) {
    throw new UserError(
      `Only ${Math.floor((bavail * bsize) / 1024 / 1024)} MB are free under ${dataDir}; the database needs ` +
        `${FREE_BYTES_MIN / 1024 / 1024} MB. Free some space, or set DATA_DIR to another disk.`,
    );
  }
  await removeLeftovers(dataDir);
  const { user } = binaries;
  const draft = join(dataDir, `postgres.new-${process.pid}`);
  const passwordFile = join(draft, "password");
  const connection = { port: await freePort(), password: randomBytes(24).toString("base64url") };
  try {
    await mkdir(draft, { mode: 0o700 });
    await writeFile(passwordFile, connection.password, { mode: 0o600 });
    if (user) {
      await chown(draft, user.uid, user.gid);
      await chown(passwordFile, user.uid, user.gid);
    }
    const { status, output } = await binaries.run(
      "initdb",
      [
        `--pgdata=${join(draft, "cluster")}`,
        `--username=${OWNER}`,
        `--pwfile=${passwordFile}`,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
      ],
      draft,
    );
    if (status !== 0) throw new UserError(`The database could not be made.\n${explain(output)}`);
    await rm(passwordFile);
    await writeConnection(draft, connection);
    await rename(draft, home);
  } catch (error) {
    await rm(draft, { recursive: true, force: true });
    // ENOTEMPTY: another first start was quicker, its cluster is as good as ours.
    if (errorCode(error) !== "ENOTEMPTY" && errorCode(error) !== "EEXIST") throw error;
  }
}

/** Drafts of first starts that were killed. */
async function removeLeftovers(dataDir: string): Promise<void> {
  for (const name of await readdir(dataDir)) {
    const pid = /^postgres\.new-(\d+)$/.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await rm(join(dataDir, name), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return errorCode(error) === "EPERM";
  }
}

async function writeConnection(folder: string, connection: Connection): Promise<void> {
  const draft = join(folder, `connection.json.${process.pid}`);
  await writeFile(draft, `${JSON.stringify(connection)}\n`, { mode: 0o600 });
  await rename(draft, join(folder, "connection.json"));
}

async function contains(folder: string, name: string): Promise<boolean> {
  try {
    return (await readdir(folder)).includes(name);
  } catch (error) {
    if (errorCode(error) === "ENOENT") return false;
    throw unusable(folder, error);
  }
}

function unusable(path: string, error: unknown): UserError {
  const reasons: Record<string, string> = {
    EACCES: "this user may not write there",
    EPERM: "this user may not write there",
    EROFS: "the file system is read-only",
    ENOSPC: "the disk is full",
    ENOTDIR: "it is not a folder",
    EEXIST: "it is not a folder",
    ENOENT: "no folder can be made there",
  };
  const reason = reasons[errorCode(error) ?? ""] ?? String(error);
  return new UserError(
    `The data folder ${path} cannot be used: ${reason}.\nSet DATA_DIR to a folder that this user may write to.`,
    { cause: error },
  );
}

/** Adds what to do to the failures of PostgreSQL that a person can solve. */
export function explain(output: string): string {
  if (/No space left on device/.test(output)) return `${output}\nThe disk is full: free some space and start again.`;
  if (/loading shared libraries|Library not loaded/.test(output)) {
    return `${output}\nThe package's install script did not run: \`npm rebuild\` runs it.`;
  }
  return output;
}
