/**
 * Signatures of the Standard Webhooks specification (standardwebhooks.com), symmetric form v1. No secret is stored:
 * each follows from one secret that our processes share, whom it is for, and how often it was rotated.
 */
import { createHmac } from "node:crypto";

import type { CustomerId, EndpointId, RandomBytes } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";
import { sharedSecret } from "#platform/shared-secret.ts";

/** After a rotation the secret before signs, too, for so long: time to bring the new one to every receiver. */
export const ROTATION_OVERLAP_MS = 24 * 3_600_000;

/** Who signs: an endpoint, or the customer for the URLs that come with rollouts and datasets. */
export type Signer =
  | { readonly kind: "endpoint"; readonly id: EndpointId }
  | { readonly kind: "customer"; readonly id: CustomerId };

/** How often its secret was rotated, plus one; and when last. */
export interface Generation {
  readonly generation: number;
  readonly rotated_at: Date | null;
}

/** What all webhook secrets follow from. */
export const webhookRoot = (sql: Sql, random: RandomBytes): Promise<Buffer> => sharedSecret(sql, "webhooks", random);

const keyOf = (root: Buffer, { kind, id }: Signer, generation: number): Buffer =>
  createHmac("sha256", root).update(`${kind}\n${id}\n${generation}`).digest();

/** As its owner sees it, and as libraries for Standard Webhooks take it. */
export const secretText = (root: Buffer, signer: Signer, { generation }: Pick<Generation, "generation">): string =>
  `whsec_${keyOf(root, signer, generation).toString("base64")}`;

/** When the secret before the present one stops to sign; null where there is none or it has. */
export function previousSignsUntil({ generation, rotated_at }: Generation, nowMs: number): Date | null {
  if (generation === 1 || rotated_at === null) return null;
  const until = new Date(rotated_at.getTime() + ROTATION_OVERLAP_MS);
  return until.getTime() > nowMs ? until : null;
}

export interface Signed {
  readonly id: string;
  /** Of this attempt. */
  readonly nowMs: number;
  readonly body: Buffer;
}

/** The headers that prove where a message is from and when it was sent; after a rotation with two signatures. */
export function signatureHeaders(
  root: Buffer,
  signer: Signer,
  generation: Generation,
  { id, nowMs, body }: Signed,
): Record<string, string> {
  const timestamp = Math.floor(nowMs / 1000);
  const overlap = previousSignsUntil(generation, nowMs) !== null;
  const generations = overlap ? [generation.generation, generation.generation - 1] : [generation.generation];
  const signatures = generations.map((each) => {
    const mac = createHmac("sha256", keyOf(root, signer, each))
      .update(`${id}.${timestamp}.`)
      .update(body);
    return `v1,${mac.digest("base64")}`;
  });
  return {
    "webhook-id": id,
    "webhook-timestamp": String(timestamp),
    "webhook-signature": signatures.join(" "),
  };
}
