/** Runs the published Python client, unchanged, against a server: the one our users already have. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { delimiter, dirname, join, resolve } from "node:path";
import { promisify } from "node:util";

import ffmpeg from "@ffmpeg-installer/ffmpeg";

const run = promisify(execFile);

const SUITE = join(import.meta.dirname, "suite.py");
const REQUIREMENTS = join(import.meta.dirname, "requirements.txt");
/** Inside node_modules, so that a clean install starts afresh and nothing of it is ever committed. */
const CACHE_DIR = resolve(import.meta.dirname, "../../node_modules/.cache/dream-engine-client");
const INSTALL_TIMEOUT_MS = 5 * 60_000;
const SUITE_TIMEOUT_MS = 5 * 60_000;

export interface ClientSuiteOptions {
  readonly baseUrl: string;
  /** With credit for some thirty rollouts. */
  readonly apiKey: string;
  /** Of a customer whose balance pays for nothing. */
  readonly poorApiKey: string;
  /** Limited to one request a second, burst 1. */
  readonly slowApiKey: string;
  /** A server that takes cards, where opening a session's page pays; with a key there. */
  readonly topup?: { readonly baseUrl: string; readonly apiKey: string };
  /** What the actions of the active model mean something in, so that different ones give different videos. */
  readonly actionRange: readonly [min: number, max: number];
}

export interface ClientCheck {
  readonly name: string;
  /** A Python traceback, or null when the check passed. */
  readonly error: string | null;
}

/** The names of the checks, without running them. */
export async function clientCheckNames(): Promise<string[]> {
  const source = await readFile(SUITE, "utf8");
  const list = /^CHECKS = \[\n([^\]]+)\]/m.exec(source)?.[1] ?? "";
  return list.split(",").flatMap((name) => (name.trim() === "" ? [] : [name.trim()]));
}

export async function runClientSuite(options: ClientSuiteOptions): Promise<ClientCheck[]> {
  const python = await ensureClient();
  const { stdout } = await run(python, [SUITE], {
    timeout: SUITE_TIMEOUT_MS,
    maxBuffer: 16 * 1024 * 1024,
    env: {
      // mediapy, with which the client decodes, takes the ffmpeg it finds here.
      PATH: [dirname(ffmpeg.path), process.env["PATH"] ?? ""].join(delimiter),
      HOME: process.env["HOME"] ?? "",
      BASE_URL: options.baseUrl,
      API_KEY: options.apiKey,
      POOR_API_KEY: options.poorApiKey,
      SLOW_API_KEY: options.slowApiKey,
      ...(options.topup ? { TOPUP_BASE_URL: options.topup.baseUrl, TOPUP_API_KEY: options.topup.apiKey } : {}),
      ACTIONS_MIN: String(options.actionRange[0]),
      ACTIONS_MAX: String(options.actionRange[1]),
    },
  });
  return stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as ClientCheck); // suite.py writes nothing else
}

/** A virtual environment with the client, made once per set of requirements; gives its python. */
export async function ensureClient(): Promise<string> {
  const requirements = await readFile(REQUIREMENTS);
  const name = createHash("sha256").update(requirements).digest("hex").slice(0, 12);
  const folder = join(CACHE_DIR, name);
  const python = join(folder, "bin", "python");
  const ready = join(folder, "ready");
  if (existsSync(ready)) return python;

  await rm(folder, { recursive: true, force: true }); // of an installation that was interrupted
  await mkdir(CACHE_DIR, { recursive: true });
  await run("python3", ["-m", "venv", folder], { timeout: INSTALL_TIMEOUT_MS }).catch((error: unknown) => {
    throw new Error(
      "The published client needs Python 3.10 or later with venv to be tested. On Debian or Ubuntu: " +
        "apt-get install -y python3 python3-venv",
      { cause: error },
    );
  });
  await run(python, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS], {
    timeout: INSTALL_TIMEOUT_MS,
  });
  await writeFile(ready, "");
  return python;
}
