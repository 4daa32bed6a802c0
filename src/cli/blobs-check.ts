/** Doctor's look at the blob store: everything that we do with one, on a blob that is gone afterwards. */
import { randomUUID } from "node:crypto";

import type { BlobStore } from "#blobs/blob-store.ts";
import { blobUrlOf } from "#blobs/blob-url.ts";
import { s3Problem } from "#blobs/s3-problem.ts";
import { type Config, ConfigError } from "#platform/config.ts";

import { openBlobs } from "./context.ts";
import { UserError } from "./user-error.ts";

const LINK_LIFETIME_MS = 60_000;
const FETCH_TIMEOUT_MS = 10_000;
const CONTENT = "written by dream-engine doctor, may be deleted";

export async function checkBlobs(config: Config): Promise<string> {
  const where = blobUrlOf(config);
  const step = { doing: "open it" };
  try {
    const links = await probe(await openBlobs(config), step);
    return `${where}, written, read, listed and deleted${links}`;
  } catch (error) {
    if (error instanceof UserError || error instanceof ConfigError) throw error;
    const message = error instanceof Error ? error.message : String(error);
    throw new UserError(`${where}: cannot ${step.doing}: ${s3Problem(error, config) ?? message}`, { cause: error });
  }
}

/** Says in `step` what it is at; returns what there is to say about links. */
async function probe(blobs: BlobStore, step: { doing: string }): Promise<string> {
  const key = `doctor/${randomUUID()}`;
  const copy = `${key}.copy`;
  try {
    step.doing = "write a blob";
    await blobs.put(key, Buffer.from(CONTENT));
    step.doing = "copy it";
    await blobs.copy(key, copy);
    step.doing = "read it";
    if ((await blobs.get(copy)).toString() !== CONTENT) throw new UserError("what was read is not what was written");
    step.doing = "list it";
    const listed: string[] = [];
    for await (const blob of blobs.list(key)) listed.push(blob.key);
    if (!listed.includes(copy)) throw new UserError("what was written is not listed");
    step.doing = "fetch it by a signed link";
    const links = await probeLink(blobs, key);
    step.doing = "delete it";
    await Promise.all([blobs.delete(key), blobs.delete(copy)]);
    if ((await blobs.info(key)) !== null) throw new UserError("what was deleted is still there");
    return links;
  } finally {
    await Promise.allSettled([blobs.delete(key), blobs.delete(copy)]); // an error on the way is what has to be told
  }
}

async function probeLink(blobs: BlobStore, key: string): Promise<string> {
  if (!blobs.presignedUrl) return "";
  const link = await blobs.presignedUrl(key, { lifetimeMs: LINK_LIFETIME_MS, filename: "doctor.mp4" });
  if (link === null) return "; the gateway serves the videos";
  const { host } = new URL(link);
  const reply = await fetch(link, { signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) }).catch((error: unknown) => {
    throw new UserError(
      `video links lead to ${host}, which does not answer: set S3_PUBLIC_ENDPOINT to where clients reach the bucket, ` +
        "or to none and the gateway serves the videos",
      { cause: error },
    );
  });
  if (reply.status === 200 && (await reply.text()) === CONTENT) return `; links lead to ${host}`;
  throw new UserError(`${host} answers ${reply.status} to a signed link; S3_PUBLIC_ENDPOINT has to be the same store`);
}
