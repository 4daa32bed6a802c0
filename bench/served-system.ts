/** The whole embedded system as `npm start` runs it, for a benchmark: started, given a customer, stopped. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

export interface ServedSystem {
  readonly url: string;
  readonly apiKey: string;
  stop(): Promise<void>;
}

const READY_TIMEOUT_MS = 120_000;
const STOP_TIMEOUT_MS = 30_000;
const MAIN = "src/cli/main.ts";

/** `redisUrl` null: the queue on the embedded PostgreSQL. */
export async function startServedSystem(redisUrl: string | null): Promise<ServedSystem> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-"));
  const env: NodeJS.ProcessEnv = { ...process.env, DATA_DIR: dataDir, PORT: "0", LOG_LEVEL: "warn" };
  if (redisUrl !== null) env["REDIS_URL"] = redisUrl;
  const server = spawn(process.execPath, [MAIN, "serve"], { env, stdio: ["ignore", "pipe", "inherit"] });
  const url = await baseUrlOf(server.stdout);

  const mint = ["keys", "create", "--customer", "bench@example.com", "--initial-credits", "1000", "--json"];
  const keys = spawn(process.execPath, [MAIN, ...mint], { env, stdio: ["ignore", "pipe", "inherit"] });
  const { api_key: apiKey, key_id: keyId } = JSON.parse(await textOf(keys.stdout)) as Record<string, string>;
  // The rate limit is not what is measured.
  const limit = ["keys", "limit", String(keyId), "--rate", "10000", "--burst", "10000"];
  await once(spawn(process.execPath, [MAIN, ...limit], { env, stdio: "ignore" }), "exit");

  return {
    url,
    apiKey: String(apiKey),
    async stop() {
      const exited = once(server, "exit");
      server.kill("SIGTERM");
      if ((await Promise.race([exited, delay(STOP_TIMEOUT_MS, "late")])) === "late") server.kill("SIGKILL");
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

async function baseUrlOf(stdout: NodeJS.ReadableStream): Promise<string> {
  const lines = createInterface({ input: stdout });
  const found = (async () => {
    for await (const line of lines) {
      const url = /Base URL\s+(\S+)/.exec(line)?.[1];
      if (url !== undefined) return url;
    }
    throw new Error("the server ended before it was ready");
  })();
  const late = delay(READY_TIMEOUT_MS).then(() => {
    throw new Error(`the server was not ready within ${READY_TIMEOUT_MS} ms`);
  });
  return Promise.race([found, late]);
}

async function textOf(stdout: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of stdout) text += String(chunk);
  return text;
}
