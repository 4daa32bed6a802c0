/** A job's start frame and actions, from the blob store. The gateway wrote them; here they are checked once more. */
import sharp from "sharp";

import { type BlobStore, BlobNotFound } from "#blobs/blob-store.ts";
import type { PredictJob } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";

/** The job cannot run, now or ever, because of what it says or refers to. */
export class BadInput extends Error {
  override readonly name = "BadInput";
}

export interface RolloutInputs {
  /** RGB at the model's resolution. */
  readonly frame: Uint8Array;
  /** One sequence a candidate, `[actions_per_candidate, action_dim]`. */
  readonly actions: readonly Float32Array[];
}

export async function fetchInputs(blobs: BlobStore, job: PredictJob, manifest: Manifest): Promise<RolloutInputs> {
  if (job.model !== manifest.slug) throw new BadInput(`the job is for ${job.model}, this worker runs ${manifest.slug}`);
  const [frame, actions] = await Promise.all([fetchBlob(blobs, job.frame_key), fetchBlob(blobs, job.actions_key)]);
  return { frame: await decodeFrame(frame, manifest), actions: splitActions(actions, job, manifest) };
}

async function fetchBlob(blobs: BlobStore, key: string): Promise<Buffer> {
  try {
    return await blobs.get(key);
  } catch (error) {
    if (error instanceof BlobNotFound) throw new BadInput(`the input ${key} is gone`, { cause: error });
    throw error;
  }
}

export async function decodeFrame(png: Buffer, { shapes }: Manifest): Promise<Uint8Array> {
  const { data, info } = await sharp(png)
    .toColourspace("srgb")
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true })
    .catch((error: unknown) => {
      throw new BadInput("the start frame is not an image", { cause: error });
    });
  if (info.width !== shapes.width || info.height !== shapes.height || info.channels !== 3) {
    const got = `${info.width}×${info.height} with ${info.channels} channels`;
    throw new BadInput(`the start frame is ${got}, expected RGB of ${shapes.width}×${shapes.height}`);
  }
  return data;
}

function splitActions(bytes: Buffer, job: PredictJob, { shapes }: Manifest): Float32Array[] {
  const { k, actions_per_candidate: count } = job;
  if (count % shapes.chunk_size !== 0) {
    throw new BadInput(`${count} actions a candidate, expected a multiple of ${shapes.chunk_size}`);
  }
  const length = count * shapes.action_dim;
  const expectedBytes = k * length * Float32Array.BYTES_PER_ELEMENT;
  if (bytes.byteLength !== expectedBytes) {
    const shape = `[${k}, ${count}, ${shapes.action_dim}]`;
    throw new BadInput(`the actions have ${bytes.byteLength} bytes, expected ${expectedBytes} for float32 ${shape}`);
  }
  // A copy, because a Buffer's bytes need not lie on a four-byte boundary.
  const all = new Float32Array(new Uint8Array(bytes).buffer);
  if (!all.every(Number.isFinite)) throw new BadInput("the actions hold NaN or infinity");
  return Array.from({ length: k }, (_, candidate) => all.slice(candidate * length, (candidate + 1) * length));
}
