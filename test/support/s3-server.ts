/** A real S3 server over HTTP for one test file: moto, and in front of it the checks that moto leaves out (s3-server.py). */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";

import { CreateBucketCommand, type S3Client, S3Client as Client } from "@aws-sdk/client-s3";

import { freePort } from "#cli/ports.ts";
import { settlesWithin } from "#platform/bounded.ts";

import { ensurePython } from "./python.ts";

const SERVER = join(import.meta.dirname, "s3-server.py");
const REQUIREMENTS = join(import.meta.dirname, "s3-requirements.txt");
const START_TIMEOUT_MS = 30_000;
const REGION = "eu-central-1";

export interface S3User {
  readonly secret: string;
  /** An IAM policy; null: everything is allowed. */
  readonly policy: object | null;
}

export interface S3Server {
  readonly endpoint: string;
  readonly region: string;
  /** Of a user who may do everything: the environment that the SDK's chain looks at. */
  readonly credentials: Readonly<Record<"AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY", string>>;
  /** As that user, for looking at what is stored. */
  readonly client: S3Client;
  createBucket(name: string): Promise<void>;
  /** At once and without a word, as a machine that loses its power. */
  kill(): Promise<void>;
  stop(): Promise<void>;
}

export async function startS3Server(users: Readonly<Record<string, S3User>> = {}): Promise<S3Server> {
  const python = await ensurePython(REQUIREMENTS);
  const owner = { accessKeyId: "AKIAOWNER", secretAccessKey: "a secret of the owner's" };
  const everybody = { ...users, [owner.accessKeyId]: { secret: owner.secretAccessKey, policy: null } };
  const port = await freePort();
  const server = spawn(python, [SERVER, String(port)], {
    env: { PATH: process.env["PATH"], S3_USERS: JSON.stringify(everybody), S3_SERVER_REGION: REGION },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const end = (): void => void server.kill("SIGKILL");
  process.once("exit", end);
  await untilReady(server);

  const endpoint = `http://127.0.0.1:${port}`;
  const client = new Client({
    endpoint,
    region: REGION,
    forcePathStyle: true,
    credentials: owner,
    requestChecksumCalculation: "WHEN_REQUIRED",
  });
  async function kill(): Promise<void> {
    process.off("exit", end);
    if (server.exitCode !== null || server.signalCode !== null) return;
    const exited = once(server, "exit");
    end();
    await exited;
  }
  return {
    endpoint,
    region: REGION,
    credentials: { AWS_ACCESS_KEY_ID: owner.accessKeyId, AWS_SECRET_ACCESS_KEY: owner.secretAccessKey },
    client,
    async createBucket(name) {
      const where = { LocationConstraint: REGION } as const;
      await client.send(new CreateBucketCommand({ Bucket: name, CreateBucketConfiguration: where }));
    },
    kill,
    async stop() {
      client.destroy();
      await kill();
    },
  };
}

async function untilReady(server: ChildProcess): Promise<void> {
  let errors = "";
  server.stderr?.on("data", (chunk: Buffer) => (errors = (errors + chunk.toString()).slice(-4_000)));
  const ready = new Promise<void>((resolve, reject) => {
    server.stdout?.once("data", () => resolve());
    server.once("exit", () => reject(new Error(`the S3 server ended:\n${errors}`)));
  });
  if (await settlesWithin(START_TIMEOUT_MS, ready)) return ready;
  server.kill("SIGKILL");
  throw new Error(`the S3 server did not start within ${START_TIMEOUT_MS} ms:\n${errors}`);
}
