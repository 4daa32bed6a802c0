/** The blob store of docker-compose.yml, VersityGW, by the deployment's own scripts. docs/deployment.md says how to build one. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

import { freePort } from "#cli/ports.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Service } from "#platform/lifecycle.ts";

const run = promisify(execFile);
const { VERSITYGW = "versitygw" } = process.env;
const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 10_000;

/** Whether there is one: VERSITYGW, or `versitygw` in the PATH. */
export const hasVersityGw = (): Promise<boolean> =>
  run(VERSITYGW, ["--version"]).then(
    () => true,
    () => false, // not installed
  );

export interface VersityGw extends Service {
  readonly endpoint: string;
}

type Environment = Readonly<Record<string, string>>;

/** `s3` and `bucket`: what the services of these names have in docker-compose.yml. The bucket and its rights are made. */
export async function startVersityGw(s3: Environment, bucket: Environment): Promise<VersityGw> {
  const folder = mkdtempSync(join(tmpdir(), "dream-versitygw-"));
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const data = join(folder, "data");
  mkdirSync(data);
  const PATH = `${dirname(VERSITYGW)}:${process.env["PATH"]}`;
  const places = { S3_PORT: String(port), S3_FOLDER: data, S3_USERS_FOLDER: join(folder, "iam") };
  const server = spawn("sh", ["infra/compose/s3-start.sh"], { env: { PATH, ...s3, ...places }, stdio: "ignore" });
  const exited = once(server, "exit");

  async function stop(): Promise<void> {
    server.kill();
    if (!(await settlesWithin(STOP_TIMEOUT_MS, exited))) server.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }

  try {
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (!(await fetch(`${endpoint}/health`).catch(() => null))?.ok) {
      if (performance.now() > deadline || server.exitCode !== null) throw new Error("VersityGW does not start");
      await delay(50);
    }
    const setup = { PATH, ...bucket, S3_ENDPOINT: endpoint };
    // As at every start of the deployment: the second one finds a bucket.
    for (let i = 0; i < 2; i++) await run(process.execPath, ["infra/compose/make-bucket.ts"], { env: setup });
  } catch (error) {
    await stop();
    throw error;
  }
  return { endpoint, stop };
}
