/**
 * Links to a rollout's videos that work without a key, for a while: of the blob store itself where it can sign them (S3),
 * else of the gateway (signed-url.ts).
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { VIDEO_URL_LIFETIME_MS } from "#contract/limits.ts";

import type { Rollout } from "./rollout.ts";
import { videoUrl } from "./signed-url.ts";

export interface Videos {
  /** One per candidate, in submission order. */
  readonly urls: readonly string[];
  /** Epoch seconds. */
  readonly expires: number;
}

export interface VideoLinks {
  /** Null where there is no video: not succeeded, or deleted since. `publicUrl` is what the gateway's own links begin with. */
  of(rollout: Rollout, publicUrl: string, nowMs: number): Promise<Videos | null>;
}

export function createVideoLinks({ secret, blobs }: { secret: Buffer; blobs: BlobStore }): VideoLinks {
  return {
    async of({ id, result, files_deleted_at }, publicUrl, nowMs) {
      if (!result || files_deleted_at) return null;
      const expires = Math.floor((nowMs + VIDEO_URL_LIFETIME_MS) / 1000);
      const urls = await Promise.all(
        result.video_keys.map(async (key, candidate) => {
          const filename = `${id}_${candidate}.mp4`;
          const signed = await blobs.presignedUrl?.(key, { lifetimeMs: VIDEO_URL_LIFETIME_MS, filename });
          return signed ?? videoUrl(secret, publicUrl, { rollout_id: id, candidate, expires });
        }),
      );
      return { urls, expires };
    },
  };
}
