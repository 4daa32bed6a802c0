/** Starting and stopping the embedded PostgreSQL, whatever state the last process left it in. */
import { readFileSync, realpathSync } from "node:fs";
import { readFile, rm, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { Client } from "pg";

import type { Log } from "#platform/log.ts";
import { processInfo } from "#platform/processes.ts";

import { type Cluster, type Connection, explain, urlOf } from "./postgres-cluster.ts";
import { freePort, isFree } from "./ports.ts";
import { UserError } from "./user-error.ts";

const CONNECT_TIMEOUT_MS = 5_000;
const RETRY_EVERY_MS = 150;
const STOP_TIMEOUT_S = 15;
/** PostgreSQL's own log is for looking at trouble; it starts anew when it has grown to this. */
const LOG_BYTES_MAX = 10 * 1024 * 1024;
/** Beyond this pg_ctl comes back although the server may still be recovering; we go on waiting. */
const START_TIMEOUT_S = 60;
/** The first may meet another start of the same server, or processes that outlive a killed one for a moment. */
const STARTS_MAX = 5;
const START_AGAIN_AFTER_MS = 500;

export interface PostgresServer {
  /** Resolves when the server of this cluster accepts connections; starts it if need be. */
  ensureRunning(onStep: (step: string) => void, deadline: number): Promise<Connection>;
  /** Ends every connection and stops the server. */
  stop(): Promise<void>;
  /** Tells it to stop as soon as nobody is connected; at once, for the last moment of a process. */
  stopWhenUnused(): void;
}

export async function openServer(cluster: Cluster, log: Log): Promise<PostgresServer> {
  const logFile = join(cluster.folder, "..", "postgres.log");

  /** Null when it runs, else what PostgreSQL said. */
  async function start(): Promise<string | null> {
    const { port } = await cluster.readConnection();
    const { size } = await stat(logFile).catch(() => ({ size: 0 })); // none before the first start
    if (size > LOG_BYTES_MAX) await truncate(logFile);
    const settings = [
      `-p ${port}`,
      "-c listen_addresses=127.0.0.1",
      "-c unix_socket_directories=",
      "-c max_connections=200",
      // Money is in here: said once more, whatever postgresql.conf says.
      "-c fsync=on -c full_page_writes=on -c synchronous_commit=on",
    ].join(" ");
    const args = ["start", "--pgdata", cluster.folder, "--log", logFile, "--options", settings];
    const wait = ["--wait", "--timeout", String(START_TIMEOUT_S)];
    const { status, output } = await cluster.binaries.run("pg_ctl", [...args, ...wait], cluster.folder);
    if (status === 0) return null;
    const text = await readFile(logFile, "utf8").catch(() => ""); // it never came so far
    return `${output}\n${logFile} ends with:\n${text.trim().split("\n").slice(-8).join("\n")}`;
  }

  return {
    async ensureRunning(onStep, deadline) {
      let problem = "It does not answer.";
      for (let starts = 0; Date.now() < deadline && starts < STARTS_MAX;) {
        const connection = await cluster.readConnection();
        if (await answers(connection, cluster.folder)) return connection;
        if ((await runningPostmaster(cluster.folder)) !== null) {
          await delay(RETRY_EVERY_MS); // it starts, recovers, or shuts down
          continue;
        }
        if (starts === 0) onStep("starting the database");
        starts += 1;
        if (!(await isFree(connection.port))) await cluster.savePort(await freePort());
        const failed = await start();
        if (failed === null) continue;
        problem = failed;
        await delay(START_AGAIN_AFTER_MS);
      }
      throw new UserError(`PostgreSQL does not start.\n${explain(problem)}`);
    },
    async stop() {
      for (const mode of ["fast", "immediate"]) {
        const args = ["stop", "--pgdata", cluster.folder, "--mode", mode, "--timeout", String(STOP_TIMEOUT_S)];
        const { status, output } = await cluster.binaries.run("pg_ctl", args, cluster.folder);
        if (status === 0) return;
        log.warn({ mode, output }, "PostgreSQL did not stop");
      }
    },
    stopWhenUnused() {
      try {
        const pid = Number.parseInt(readFileSync(join(cluster.folder, "postmaster.pid"), "utf8"), 10);
        if (pid > 1) process.kill(pid, "SIGTERM"); // PostgreSQL calls this its smart shutdown
      } catch {
        // It is gone already.
      }
    },
  };
}

/** Whether the server of this cluster accepts connections there. */
async function answers(connection: Connection, folder: string): Promise<boolean> {
  const client = new Client({
    connectionString: urlOf(connection),
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: CONNECT_TIMEOUT_MS,
  });
  client.on("error", () => undefined); // the failure is in the rejected promise below
  try {
    await client.connect();
    // A copied data folder remembers the port and password of the original: look at which folder answers.
    const { rows } = await client.query<{ folder: string }>("SELECT current_setting('data_directory') AS folder");
    return realpathSync(rows[0]?.folder ?? "") === realpathSync(folder);
  } catch {
    return false; // nobody listens, a server that starts or stops, or a stranger: the caller looks at the process
  } finally {
    await client.end().catch(() => undefined); // was never connected
  }
}

/**
 * The process id of this cluster's server, or null. PostgreSQL itself deals with a `postmaster.pid` whose process is
 * gone; but after a power cut the id may belong to another program by now, and then it refuses to start.
 */
async function runningPostmaster(folder: string): Promise<number | null> {
  const file = join(folder, "postmaster.pid");
  const read = (): Promise<string | null> => readFile(file, "utf8").catch(() => null); // none: not running
  const text = await read();
  const pid = Number.parseInt(text ?? "", 10);
  const info = pid > 0 ? await processInfo(pid) : null;
  if (!info) return null;
  if (/postgres/.test(info.command) && info.command.includes(folder)) return pid;
  // Looked at once more, lest it is a new server's file by now.
  if ((await read()) === text) await rm(file, { force: true });
  return null;
}
