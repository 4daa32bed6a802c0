/**
 * What a scored rollout has beside its video: the frames of the served run and those of a base run of the same request, as
 * files, and how close the two are. The files are raw: the mp4 is not involved, its codec would be measured with them.
 */
import { appendFile } from "node:fs/promises";

import type { RolloutScore } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";

import type { FilePair } from "./score/score-files.ts";
import { type Scorer, ScorerFailed } from "./score/scorer.ts";

export interface RawFile {
  readonly path: string;
  /** In the order of the calls. Resolves when they are written, or when writing has failed before. Never rejects. */
  write(frames: Uint8Array): Promise<void>;
  /** Resolves when everything is written; rejects with what writing met. */
  done(): Promise<void>;
}

export function createRawFile(path: string): RawFile {
  let written = Promise.resolve();
  return {
    path,
    write(frames) {
      written = written.then(() => appendFile(path, frames));
      return written.catch(() => undefined); // `done` tells of it
    },
    done: () => written,
  };
}

/** Rejects ScorerFailed, or the signal's reason. */
export async function scoreRuns(
  scorer: Scorer,
  { served, base }: { readonly served: RawFile; readonly base: RawFile },
  { frames, height, width }: Manifest["shapes"] & { readonly frames: number },
  signal: AbortSignal,
): Promise<RolloutScore> {
  await Promise.all([served.done(), base.done()]);
  const pair: FilePair = { reference: base.path, candidate: served.path, shape: { frames, height, width } };
  const { psnr, ssim, lpips } = await scoreAgain(scorer, pair, signal);
  // By rounding, a frame that is almost the same may come out a little better than the same.
  return { psnr_db: psnr.mean, ssim: Math.min(1, ssim.mean), lpips: Math.max(0, lpips.mean) };
}

/** Once more when it fails: its process may have been killed for the machine's sake, and both runs are there. */
async function scoreAgain(scorer: Scorer, pair: FilePair, signal: AbortSignal) {
  try {
    return await scorer.score(pair, signal);
  } catch (error) {
    if (!(error instanceof ScorerFailed)) throw error;
    return scorer.score(pair, signal);
  }
}
