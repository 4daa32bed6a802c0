/**
 * The newcomer's ten minutes, on the real model and nothing but what this repository brings: the demo, then the server
 * on the data that the demo left, the published Python client against it, Ctrl-C, and what is left behind (nothing).
 */
import { execFile, execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";
import { countFrames } from "#cli/video-frames.ts";

import { run, start, type Started } from "../cli/command.ts";
import { type ClientCheck, clientCheckNames, ensureClient, runClientSuite } from "../client/run-client-suite.ts";

const START_TIMEOUT_MS = 90_000;
const SUITE_TIMEOUT_MS = 10 * 60_000;

const home = mkdtempSync(join(tmpdir(), "dream-e2e-"));
const dataDir = join(home, "data");
const video = join(home, "rollout.mp4");
const env = { DATA_DIR: dataDir, MODELS_DIR: resolve("models"), PORT: "0", LOG_LEVEL: "warn" };

const names = await clientCheckNames();
let server: Started | undefined;

afterAll(() => {
  server?.child.kill("SIGKILL");
  rmSync(home, { recursive: true, force: true });
});

describe("the demo", () => {
  test(
    "dreams the example, says what it cost to the mil, and leaves nothing running",
    { timeout: START_TIMEOUT_MS },
    async () => {
      const demo = await run([resolve("src/cli/demo.ts")], env, home);
      expect(demo.code, demo.stderr).toBe(0);
      expect(demo.stdout).toContain("$0.0245 (245 mils)");
      expect(demo.stdout).toContain("$1.0000 before, $0.9755 after");
      expect(demo.stdout).toContain(video);
      expect(await countFrames(await findFfmpeg(undefined), video)).toBe(49);
      expect(processesOf(dataDir)).toEqual([]);
    },
  );
});

describe("npm start on the data that the demo left", () => {
  let url: string;
  let checks: readonly ClientCheck[] = [];

  beforeAll(async () => {
    server = start(["serve"], env);
    url = await baseUrlOf(server);
    const [key, poor, slow] = await Promise.all([
      mint("robot@example.com", "2.50"),
      mint("poor@example.com", "0.0003"),
      mint("slow@example.com", "0.0003"),
    ]);
    await run(["keys", "limit", slow.key_id, "--rate", "1", "--burst", "1"], env);
    checks = await runClientSuite({
      baseUrl: url,
      apiKey: key.api_key,
      poorApiKey: poor.api_key,
      slowApiKey: slow.api_key,
      actionRange: [0, 512],
    });
  }, SUITE_TIMEOUT_MS);

  test.for(names)("the published Python client %s, on the real model", (name) => {
    expect(checks.find((check) => check.name === name)).toEqual({ name, error: null });
  });

  test("the README's curl and Python do what it says", { timeout: START_TIMEOUT_MS }, async () => {
    const { api_key } = await mint("reader@example.com", "1.00");
    symlinkSync(resolve("models"), join(home, "models"));
    const options = { cwd: home, env: { ...process.env, DREAM_API_KEY: api_key } };
    const readme = readFileSync("README.md", "utf8").replaceAll("http://127.0.0.1:8080", url);
    const curl = /^curl (?:.*\\\n)*.*$/m.exec(readme)?.[0] ?? "";
    const python = /^```python\n([^]*?)^```$/m.exec(readme)?.[1] ?? "";

    rmSync(video);
    await promisify(execFile)("sh", ["-c", curl], options);
    expect(await countFrames(await findFfmpeg(undefined), video)).toBe(49);

    rmSync(video);
    const { stdout } = await promisify(execFile)(await ensureClient(), ["-c", python], options);
    expect(stdout.trim()).toBe("0.0245 0.951"); // what it cost, and $1.00 less two rollouts
    expect(await countFrames(await findFfmpeg(undefined), video)).toBe(49);
  });

  test("the demo's customer is still there, with its balance", async () => {
    const { stdout } = await run(["keys", "list", "--customer", "demo@dream-engine.local", "--json"], env);
    expect(stdout).toContain("9755");
  });

  test("doctor finds the books balanced while the server runs", async () => {
    const doctor = await run(["doctor"], env);
    expect(doctor.code, doctor.stdout + doctor.stderr).toBe(0);
    expect(doctor.stdout).toMatch(/ledger/i);
  });

  test("Ctrl-C ends it within seconds, children included", async () => {
    const child = server?.child;
    expect(child).toBeDefined();
    const exited = child ? once(child, "exit") : Promise.resolve([]);
    child?.kill("SIGINT");
    const [code] = (await Promise.race([exited, delay(15_000, ["still running after 15 s"])])) as unknown[];
    expect([0, 130]).toContain(code);
    expect(processesOf(dataDir)).toEqual([]);
  });
});

async function mint(customer: string, usd: string): Promise<{ api_key: string; key_id: string }> {
  const { stdout, stderr } = await run(
    ["keys", "create", "--customer", customer, "--initial-credits", usd, "--json"],
    env,
  );
  expect(stdout, stderr).toContain("api_key");
  return JSON.parse(stdout) as { api_key: string; key_id: string }; // the line above saw it
}

async function baseUrlOf(serve: Started): Promise<string> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (Date.now() < deadline && serve.child.exitCode === null) {
    const found = /Base URL\s+(\S+)/.exec(serve.stdout())?.[1];
    if (found !== undefined) return found;
    await delay(50);
  }
  throw new Error(`the server did not get ready:\n${serve.stdout()}\n${serve.stderr()}`);
}

/** Processes whose command line or environment names the folder: postgres has it as -D, our own in the environment. */
function processesOf(folder: string): string[] {
  if (!existsSync("/proc")) return [];
  return execFileSync("ps", ["axeww", "-o", "pid,args"], { encoding: "utf8", maxBuffer: 64 * 1024 * 1024 })
    .split("\n")
    .filter((line) => line.includes(folder) && !line.includes(" ps axeww"))
    .map((line) => line.slice(0, 120));
}
