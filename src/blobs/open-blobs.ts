/** The blob store that the settings name. */
import { fileURLToPath } from "node:url";

import type { Clock } from "#platform/clock.ts";
import { type Config, ConfigError } from "#platform/config.ts";

import type { BlobStore } from "./blob-store.ts";
import { blobUrlOf } from "./blob-url.ts";
import { createFsBlobs } from "./fs.ts";
import { s3Problem } from "./s3-problem.ts";

export type BlobSettings = Pick<
  Config,
  "BLOB_URL" | "DATA_DIR" | "S3_ENDPOINT" | "S3_REGION" | "S3_PUBLIC_ENDPOINT" | "S3_FORCE_PATH_STYLE"
>;

/** Throws a ConfigError that says what to do where a bucket cannot be used: at the start, and not with the first rollout. */
export async function openBlobs(settings: BlobSettings, clock: Clock): Promise<BlobStore> {
  const url = blobUrlOf(settings);
  if (!url.startsWith("s3:")) return createFsBlobs(fileURLToPath(url));
  const { host, pathname } = new URL(url);
  const { S3_ENDPOINT: endpoint, S3_PUBLIC_ENDPOINT: publicEndpoint, S3_FORCE_PATH_STYLE: pathStyle } = settings;
  const { createS3Blobs } = await import("./s3.ts"); // the SDK is large: whoever has a folder does not load it
  const blobs = createS3Blobs({
    bucket: host,
    prefix: pathname.replaceAll(/^\/|\/$/g, ""),
    region: settings.S3_REGION,
    endpoint,
    publicEndpoint: publicEndpoint === "none" ? null : publicEndpoint,
    forcePathStyle: pathStyle === undefined ? endpoint !== undefined : pathStyle === "on",
    clock,
  });
  try {
    await blobs.list("rollouts/")[Symbol.asyncIterator]().next(); // an answer is all that is asked
  } catch (error) {
    const problem = s3Problem(error, settings);
    throw problem === null ? error : new ConfigError(`BLOB_URL cannot be used: ${problem}.`, { cause: error });
  }
  return blobs;
}
