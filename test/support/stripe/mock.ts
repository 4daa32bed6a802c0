/** Stripe's own stripe-mock, which checks every parameter against Stripe's published OpenAPI; built from source with Go. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

import { freePort } from "#cli/ports.ts";

const run = promisify(execFile);

const VERSION = "v0.203.0";
/** Inside node_modules, so that a clean install starts afresh and nothing of it is ever committed. */
const CACHE_DIR = resolve(import.meta.dirname, `../../../node_modules/.cache/stripe-mock/${VERSION}`);
const BUILD_TIMEOUT_MS = 5 * 60_000;
const START_TIMEOUT_MS = 20_000;

/** The program's path, or why there is none: no Go, or its source cannot be fetched. */
export async function buildStripeMock(): Promise<{ readonly program: string } | { readonly missing: string }> {
  const program = join(CACHE_DIR, "stripe-mock");
  if (existsSync(program)) return { program };
  try {
    await run("go", ["version"], { timeout: 20_000 });
  } catch {
    return { missing: "stripe-mock is built with Go, which is not installed here" };
  }
  await mkdir(CACHE_DIR, { recursive: true });
  try {
    await run("go", ["install", `github.com/stripe/stripe-mock@${VERSION}`], {
      timeout: BUILD_TIMEOUT_MS,
      env: { ...process.env, GOBIN: CACHE_DIR, CGO_ENABLED: "0" },
    });
  } catch (error) {
    return { missing: `stripe-mock ${VERSION} could not be built: ${String(error).slice(0, 300)}` };
  }
  return { program };
}

export async function startStripeMock(program: string): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const port = await freePort();
  const child = spawn(program, ["-http-addr", `127.0.0.1:${port}`, "-https-addr", "127.0.0.1:"], { stdio: "ignore" });
  const url = `http://127.0.0.1:${port}`;
  const stop = () => end(child);
  const startedMs = Date.now();
  for (;;) {
    const answers = await fetch(`${url}/v1/customers`, { headers: { authorization: "Bearer sk_test_123" } }).then(
      ({ ok }) => ok,
      () => false,
    );
    if (answers) return { url, stop };
    if (child.exitCode !== null || Date.now() - startedMs > START_TIMEOUT_MS) {
      await stop();
      throw new Error(`stripe-mock did not answer within ${START_TIMEOUT_MS} ms`);
    }
    await delay(100);
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((done) => child.once("exit", done));
  child.kill("SIGKILL");
  await ended;
}
