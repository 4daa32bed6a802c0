/** Runs the published Python client, unchanged, against a server: the one our users already have. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";

import ffmpeg from "@ffmpeg-installer/ffmpeg";

import { ensurePython } from "../support/python.ts";
import { startS3Server } from "../support/s3-server.ts";

const run = promisify(execFile);

const SUITE = join(import.meta.dirname, "suite.py");
const REQUIREMENTS = join(import.meta.dirname, "requirements.txt");
const SUITE_TIMEOUT_MS = 5 * 60_000;
const BUCKET = "robot-episodes";

export interface ClientSuiteOptions {
  readonly baseUrl: string;
  /** With credit for some fifty rollouts. */
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

/** Also starts an S3 server of the suite's own, for what the client reads from and writes to a bucket. */
export async function runClientSuite(options: ClientSuiteOptions): Promise<ClientCheck[]> {
  const [python, s3] = await Promise.all([ensureClient(), startS3Server()]);
  try {
    await s3.createBucket(BUCKET);
    return await runChecks(python, options, {
      S3_ENDPOINT: s3.endpoint,
      S3_BUCKET: BUCKET,
      AWS_DEFAULT_REGION: s3.region,
      ...s3.credentials,
    });
  } finally {
    await s3.stop();
  }
}

async function runChecks(
  python: string,
  options: ClientSuiteOptions,
  s3Env: Readonly<Record<string, string>>,
): Promise<ClientCheck[]> {
  const { stdout } = await run(python, [SUITE], {
    timeout: SUITE_TIMEOUT_MS,
    maxBuffer: 16 * 1024 * 1024,
    env: {
      // mediapy, with which the client decodes, takes the ffmpeg it finds here.
      PATH: [dirname(ffmpeg.path), process.env["PATH"] ?? ""].join(delimiter),
      HOME: process.env["HOME"] ?? "",
      ...s3Env,
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

/** The python of an environment with the client. */
export const ensureClient = (): Promise<string> => ensurePython(REQUIREMENTS);
