/**
 * SHA-256 over everything that decides a rollout's pixels, and whether they are scored. Equal fingerprints of one customer are the same request:
 * this is what an Idempotency-Key is checked against, and how a paid video that did not arrive is found again.
 */
import { createHash } from "node:crypto";

import type { Manifest } from "#contract/manifest.ts";
import type { SamplingParams } from "#contract/rollout.ts";

export interface FingerprintInput {
  /** From `bundleIdentity`; names the model, too. */
  readonly bundle: string;
  /** RGB8 at the model's resolution. */
  readonly pixels: Buffer;
  /** Little-endian float32, candidates one after the other. */
  readonly actions: Buffer;
  readonly k: number;
  readonly params: SamplingParams;
  /** Whether its score is asked for, too: then a rollout without one is not the same. */
  readonly scored: boolean;
}

export function fingerprintOf({ bundle, pixels, actions, k, params, scored }: FingerprintInput): Buffer {
  // One array as JSON: unambiguous, whatever a prompt contains.
  const everything = [
    bundle,
    digest(pixels),
    digest(actions),
    k,
    params.seed,
    params.num_steps,
    params.guidance,
    params.prompt,
    // Nothing where it is not, as before there were scores: what was paid for then is still found.
    ...(scored ? ["scored"] : []),
  ];
  return createHash("sha256").update(JSON.stringify(everything)).digest();
}

const digest = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

/** What of a bundle decides the pixels: its weights and how they are sampled; not its catalogue texts. */
export function bundleIdentity({ slug, shapes, sampler, actions, text, graphs }: Manifest): string {
  const weights = Object.entries(graphs).map(([name, graph]) => [name, graph.sha256]);
  return createHash("sha256")
    .update(JSON.stringify([slug, shapes, sampler, actions, text, weights]))
    .digest("hex");
}
