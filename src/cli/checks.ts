/** The checks of `doctor`: each returns what it found, or throws a UserError that says what to do. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { statfs } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";

import { Redis } from "ioredis";

import { verifyLedger } from "#ledger/verify.ts";
import { loadManifests } from "#platform/bundles.ts";
import { type Config, readConfig } from "#platform/config.ts";
import { errorCode } from "#platform/error-code.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { checkBlobs } from "./blobs-check.ts";
import { forbiddenByRights, openDatabase, type Parts } from "./context.ts";
import { makeFolders } from "./folders.ts";
import { findPortHolder, isFree } from "./ports.ts";
import { findRunningServer } from "./running-server.ts";
import { UserError } from "./user-error.ts";

type Check = readonly [name: string, run: (config: Config) => Promise<string>];

const CHECKS: readonly Check[] = [
  ["node", checkNode],
  ["disk", checkDisk],
  ["ffmpeg", checkFfmpeg],
  ["models", checkModels],
  ["port", checkPort],
  ["redis", checkRedis],
  ["blobs", checkBlobs],
  ["database and ledger", checkDatabase],
];

const NODE_MAJOR_MIN = 24;
/** Videos of some thousand rollouts, and a database. */
const FREE_BYTES_MIN = 1024 ** 3;
const REDIS_TIMEOUT_MS = 5_000;
const PROBLEMS_SHOWN_MAX = 10;

/** Runs them all, one line each; returns the number of problems. */
export async function runChecks(print: (line: string) => void): Promise<number> {
  let config: Config;
  try {
    config = readConfig(process.env);
    print("ok       configuration");
  } catch (error) {
    print(`problem  configuration: ${messageOf(error)}`);
    return 1;
  }
  let problems = 0;
  for (const [name, run] of CHECKS) {
    try {
      print(`ok       ${name}: ${await run(config)}`);
    } catch (error) {
      problems += 1;
      print(`problem  ${name}: ${messageOf(error).replaceAll("\n", "\n         ")}`);
    }
  }
  return problems;
}

async function checkNode(): Promise<string> {
  const { node } = process.versions;
  if (Number(node.split(".")[0]) < NODE_MAJOR_MIN) {
    throw new UserError(`Node ${NODE_MAJOR_MIN} is needed, this is ${node}; start through npm, which brings it`);
  }
  return node;
}

async function checkDisk({ DATA_DIR }: Config): Promise<string> {
  await makeFolders(DATA_DIR, 0o711).catch((error: unknown) => {
    throw new UserError(`cannot make ${DATA_DIR} (${errorCode(error)}); set DATA_DIR to a folder you may write to`);
  });
  const { bavail, bsize } = await statfs(DATA_DIR);
  const free = `${((bavail * bsize) / 1024 ** 3).toFixed(1)} GB free under ${DATA_DIR}`;
  if (bavail * bsize < FREE_BYTES_MIN) throw new UserError(`only ${free}; free some space or set DATA_DIR elsewhere`);
  return free;
}

async function checkFfmpeg({ FFMPEG_PATH }: Config): Promise<string> {
  return findFfmpeg(FFMPEG_PATH).catch((error: unknown) => {
    const advice = FFMPEG_PATH === undefined ? "set FFMPEG_PATH to another one" : "unset FFMPEG_PATH to use npm's";
    throw new UserError(`${messageOf(error)}; ${advice}`, { cause: error });
  });
}

async function checkModels({ MODELS_DIR }: Config): Promise<string> {
  const manifests = await loadManifests(MODELS_DIR);
  for (const { slug, graphs } of manifests) {
    for (const { file, sha256 } of Object.values(graphs)) {
      const path = join(MODELS_DIR, slug, file);
      const hash = createHash("sha256");
      await pipeline(createReadStream(path), hash).catch((error: unknown) => {
        throw new UserError(`cannot read ${path} (${errorCode(error)}); restore it, with git for instance`);
      });
      if (hash.digest("hex") !== sha256) {
        throw new UserError(`${path} is not the file its manifest names (SHA-256 differs); restore it`);
      }
    }
  }
  return `${manifests.map(({ slug }) => slug).join(", ")}, checksums right`;
}

async function checkPort({ PORT, HOST, DATA_DIR }: Config): Promise<string> {
  const server = await findRunningServer(DATA_DIR);
  if (server) return `serve runs (process ${server.pid}, ${server.url})`;
  if (await isFree(PORT, HOST)) return `${PORT} is free`;
  const holder = await findPortHolder(PORT);
  throw new UserError(`${PORT} is in use${holder === null ? "" : ` by ${holder}`}; set PORT to another one`);
}

async function checkRedis({ REDIS_URL }: Config): Promise<string> {
  if (REDIS_URL === undefined) return "not configured, the queue lives in PostgreSQL";
  const redis = new Redis(REDIS_URL, { lazyConnect: true, maxRetriesPerRequest: 0, connectTimeout: REDIS_TIMEOUT_MS });
  let reason: unknown;
  redis.on("error", (error) => (reason = error)); // says more than the rejected promise below
  try {
    await redis.connect();
    const policy = /^maxmemory_policy:(.*)$/m.exec(await redis.info("memory"))?.[1]?.trim();
    if (policy !== undefined && policy !== "noeviction") {
      throw new UserError(`maxmemory-policy is ${policy}: jobs would be evicted; set it to noeviction`);
    }
    return "answers";
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`REDIS_URL does not answer (${messageOf(reason ?? error)}); start it or correct the address`);
  } finally {
    redis.disconnect();
  }
}

async function checkDatabase(config: Config): Promise<string> {
  const log = createLog("doctor", "error");
  const parts: Parts = [];
  try {
    const { db, embedded } = await openDatabase(config, log, parts);
    const [row] = await db.query<{ version: string }>("SELECT current_setting('server_version') AS version");
    const disagreements = await verifyLedger(db);
    if (disagreements.length > 0) {
      const shown = disagreements.slice(0, PROBLEMS_SHOWN_MAX).join("\n");
      throw new UserError(`the books do not balance (${disagreements.length}); keep the database as it is\n${shown}`);
    }
    return `PostgreSQL ${row?.version}${embedded ? " (embedded)" : ""}, the books balance`;
  } catch (error) {
    throw forbiddenByRights(error) ?? error;
  } finally {
    await stopAll(parts, log);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
