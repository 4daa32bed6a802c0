/** A PostgreSQL of one's own that writes to disk as in production and can be killed whole, as by a power cut. */
import { execFile } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { createCluster, urlOf } from "#cli/postgres-cluster.ts";
import { openServer } from "#cli/postgres-server.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";

import { eventually } from "../queue/test-queue.ts";

const run = promisify(execFile);
const START_WITHIN_MS = 60_000;

export interface OwnPostgres extends Service {
  readonly url: string;
  /** SIGKILLs every process of the server at once, and starts it again; resolves when it has recovered. */
  crash(): Promise<void>;
}

export async function startOwnPostgres(): Promise<OwnPostgres> {
  const folder = mkdtempSync(join(tmpdir(), "dream-crash-postgres-"));
  chmodSync(folder, 0o711); // as root, the server runs as another user who must pass through
  const cluster = await createCluster(folder, () => undefined);
  const server = await openServer(cluster, createLog("test", "silent"));
  const start = async (): Promise<string> =>
    urlOf(await server.ensureRunning(() => undefined, Date.now() + START_WITHIN_MS));
  const url = await start();
  return {
    url,
    async crash() {
      const postmaster = Number(readFileSync(join(cluster.folder, "postmaster.pid"), "utf8").split("\n")[0]);
      const { stdout } = await run("pgrep", ["-P", String(postmaster)]);
      const backends = stdout.split("\n").filter(Boolean).map(Number);
      for (const pid of [postmaster, ...backends]) killHard(pid);
      // A dead process that init has not collected yet counts as a running postmaster, which after a power cut is not there.
      await eventually(async () => !isThere(postmaster), START_WITHIN_MS);
      if ((await start()) !== url) throw new Error("somebody took the port of a server that was down for a moment");
    },
    async stop() {
      await server.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function isThere(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

function killHard(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It ended by itself since we looked.
  }
}
