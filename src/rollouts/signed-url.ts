/**
 * Links to videos that work without a key, for a while: `/v1/rollouts/<id>/video?candidate=0&expires=…&signature=…`.
 * The signature is HMAC-SHA256 over the rollout, the candidate and the expiry; the secret is shared by all gateways.
 */
import { createHmac, timingSafeEqual } from "node:crypto";

import { ApiError } from "#contract/errors.ts";
import type { RolloutId } from "#contract/ids.ts";

export interface VideoLink {
  readonly rollout_id: RolloutId;
  readonly candidate: number;
  /** Epoch seconds. */
  readonly expires: number;
}

function signatureOf(secret: Buffer, { rollout_id, candidate, expires }: VideoLink): Buffer {
  return createHmac("sha256", secret).update(`video\n${rollout_id}\n${candidate}\n${expires}`).digest();
}

export function videoUrl(secret: Buffer, baseUrl: string, link: VideoLink): string {
  const signature = signatureOf(secret, link).toString("hex");
  const { rollout_id, candidate, expires } = link;
  return `${baseUrl}/v1/rollouts/${rollout_id}/video?candidate=${candidate}&expires=${expires}&signature=${signature}`;
}

/** Throws ApiError 403 with the reason. */
export function checkVideoLink(secret: Buffer, link: VideoLink, signature: string, nowMs: number): void {
  checkSigned(signatureOf(secret, link), signature, link.expires, nowMs, `/v1/rollouts/${link.rollout_id}`);
}

/**
 * Throws ApiError 403 with the reason; the signature first, so that nothing else of a forged link is believed. `expires`
 * in epoch seconds; `source` is the path that gives a new link.
 */
export function checkSigned(expected: Buffer, signature: string, expires: number, nowMs: number, source: string): void {
  const given = Buffer.from(signature, "hex");
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) {
    throw new ApiError(
      "video_url_invalid",
      "the signature does not fit this link; use video_url exactly as it was returned",
    );
  }
  if (expires * 1000 <= nowMs) {
    throw new ApiError(
      "video_url_expired",
      `this link expired at ${new Date(expires * 1000).toISOString()}; GET ${source} with your key gives a new one`,
    );
  }
}
