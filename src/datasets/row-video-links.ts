/**
 * Links to the videos of a dataset's rows that work without a key, for a while:
 * `/v1/datasets/<id>/video?row=<n>&expires=…&signature=…`. They are the gateway's own also where the blob store signs links
 * (S3), because pages of a thousand rows and files of a quarter of a million have one each; what is behind them leads on
 * to the store.
 */
import { createHmac } from "node:crypto";

import type { DatasetId } from "#contract/ids.ts";
import { VIDEO_URL_LIFETIME_MS } from "#contract/limits.ts";
import { checkSigned } from "#rollouts/signed-url.ts";

import type { DatasetRow } from "./row.ts";

export interface RowVideo {
  readonly url: string;
  /** Epoch seconds. */
  readonly expires: number;
}

export interface RowVideoLinks {
  /** Null where there is no video: it has not succeeded, or `filesDeleted`. `publicUrl` is what the links begin with. */
  of(
    row: Pick<DatasetRow, "dataset_id" | "n" | "video_key">,
    around: { readonly publicUrl: string; readonly nowMs: number; readonly filesDeleted: boolean },
  ): RowVideo | null;
}

/** `secret`: the shared secret "video_url". */
export function createRowVideoLinks(secret: Buffer): RowVideoLinks {
  return {
    of({ dataset_id, n, video_key }, { publicUrl, nowMs, filesDeleted }) {
      if (video_key === null || filesDeleted) return null;
      const expires = Math.floor((nowMs + VIDEO_URL_LIFETIME_MS) / 1000);
      const signature = signatureOf(secret, { dataset_id, n, expires }).toString("hex");
      const url = `${publicUrl}/v1/datasets/${dataset_id}/video?row=${n}&expires=${expires}&signature=${signature}`;
      return { url, expires };
    },
  };
}

export interface RowVideoLink {
  readonly dataset_id: DatasetId;
  readonly n: number;
  /** Epoch seconds. */
  readonly expires: number;
}

function signatureOf(secret: Buffer, { dataset_id, n, expires }: RowVideoLink): Buffer {
  return createHmac("sha256", secret).update(`row video\n${dataset_id}\n${n}\n${expires}`).digest();
}

/** Throws ApiError 403 with the reason. */
export function checkRowVideoLink(secret: Buffer, link: RowVideoLink, signature: string, nowMs: number): void {
  checkSigned(signatureOf(secret, link), signature, link.expires, nowMs, `/v1/datasets/${link.dataset_id}/rows`);
}
