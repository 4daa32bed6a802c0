/**
 * What an inference worker is given: nothing but what it needs. On Redis it holds no database credentials; on the
 * PostgreSQL queue it gets a role of its own that sees the `bullmq` schema alone (database-roles.ts), so it cannot
 * reach the ledger.
 */
import { availableParallelism } from "node:os";

import { blobUrlOf } from "#blobs/blob-url.ts";
import type { Config } from "#platform/config.ts";

/** Where the AWS SDK looks for credentials and a region (its files are under HOME). None of them is for a worker on a folder. */
const AWS_VARIABLES = [
  "AWS_ACCESS_KEY_ID",
  "AWS_SECRET_ACCESS_KEY",
  "AWS_SESSION_TOKEN",
  "AWS_PROFILE",
  "AWS_CONFIG_FILE",
  "AWS_SHARED_CREDENTIALS_FILE",
  "AWS_REGION",
  "AWS_ROLE_ARN",
  "AWS_ROLE_SESSION_NAME",
  "AWS_WEB_IDENTITY_TOKEN_FILE",
  "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
  "AWS_CONTAINER_CREDENTIALS_FULL_URI",
  "AWS_CONTAINER_AUTHORIZATION_TOKEN",
  "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
  "AWS_EC2_METADATA_DISABLED",
  "NODE_EXTRA_CA_CERTS",
];

/** The whole environment of a worker process. `queueDatabaseUrl` is ignored on Redis. */
export function workerEnv(config: Config, model: string, queueDatabaseUrl: string | null): Record<string, string> {
  const blobUrl = blobUrlOf(config);
  return {
    ...inherited("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
    MODEL: model,
    ...(config.REDIS_URL === undefined ? {} : { REDIS_URL: config.REDIS_URL }),
    ...(config.REDIS_URL === undefined && queueDatabaseUrl !== null ? { DATABASE_URL: queueDatabaseUrl } : {}),
    BLOB_URL: blobUrl,
    ...(blobUrl.startsWith("s3:") ? { ...storeSettings(config), ...inherited(...AWS_VARIABLES) } : {}),
    MODELS_DIR: config.MODELS_DIR,
    ORT_PROVIDERS: config.ORT_PROVIDERS.join(","),
    ...(config.FFMPEG_PATH === undefined ? {} : { FFMPEG_PATH: config.FFMPEG_PATH }),
    LOG_LEVEL: config.LOG_LEVEL,
    // The workers of a machine share its cores.
    ORT_THREADS: String(Math.max(1, Math.floor(availableParallelism() / Math.max(1, config.WORKERS)))),
    ...inherited("ENGINE_RUN_TIMEOUT_MS", "ENGINE_OPTIMISATIONS", "ORT_THREADS", "ORT_DEVICE"),
  };
}

/** Not where clients reach the store: a worker gives nobody a link. */
function storeSettings({ S3_ENDPOINT, S3_REGION, S3_FORCE_PATH_STYLE }: Config): Record<string, string> {
  return given({ S3_ENDPOINT, S3_REGION, S3_FORCE_PATH_STYLE });
}

const inherited = (...names: readonly string[]): Record<string, string> =>
  given(Object.fromEntries(names.map((name) => [name, process.env[name]])));

function given(values: Readonly<Record<string, string | undefined>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(values).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  );
}
