/**
 * What an inference worker is given: nothing but what it needs. On Redis it holds no database credentials; on the
 * PostgreSQL queue it gets a role of its own that sees the `bullmq` schema alone (database-roles.ts), so it cannot
 * reach the ledger.
 */
import { blobUrlOf } from "#blobs/blob-url.ts";
import type { Config } from "#platform/config.ts";

/** The whole environment of a worker process. `queueDatabaseUrl` is ignored on Redis. */
export function workerEnv(config: Config, model: string, queueDatabaseUrl: string | null): Record<string, string> {
  const inherited = Object.fromEntries(
    ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"].flatMap((name) => {
      const value = process.env[name];
      return value === undefined ? [] : [[name, value] as const];
    }),
  );
  return {
    ...inherited,
    MODEL: model,
    ...(config.REDIS_URL === undefined ? {} : { REDIS_URL: config.REDIS_URL }),
    ...(config.REDIS_URL === undefined && queueDatabaseUrl !== null ? { DATABASE_URL: queueDatabaseUrl } : {}),
    BLOB_URL: blobUrlOf(config),
    MODELS_DIR: config.MODELS_DIR,
    ORT_PROVIDERS: config.ORT_PROVIDERS.join(","),
    ...(config.FFMPEG_PATH === undefined ? {} : { FFMPEG_PATH: config.FFMPEG_PATH }),
    LOG_LEVEL: config.LOG_LEVEL,
  };
}
