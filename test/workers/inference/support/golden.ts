/** The golden rollouts that the Python reference pipeline made (test/golden/manifest.json says how). */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import sharp from "sharp";

import { npy } from "#test/support/npy.ts";
import type { EngineRequest } from "#workers/inference/engine/loop.ts";

const DIR = "test/golden";

interface GoldenManifest {
  readonly bundle: string;
  readonly bundle_graphs: Readonly<Record<string, string>>;
  readonly tolerance: { readonly first_chunk_tensor_abs: number; readonly frame_mean_abs_levels: number };
  readonly rollouts: readonly {
    readonly name: string;
    readonly seed: string;
    readonly prompt: string;
    readonly num_steps: number;
    readonly guidance: number;
  }[];
  readonly files: Readonly<Record<string, { readonly sha256: string; readonly bytes: number }>>;
}

export const golden = JSON.parse(readFileSync(join(DIR, "manifest.json"), "utf8")) as GoldenManifest;
export type GoldenRollout = GoldenManifest["rollouts"][number];

/** A file of the golden set; throws when it is not the one that the manifest describes. */
function goldenFile(rollout: GoldenRollout, name: string): Buffer {
  const path = `${rollout.name}/${name}`;
  const body = readFileSync(join(DIR, path));
  const sha256 = createHash("sha256").update(body).digest("hex");
  if (golden.files[path]?.sha256 !== sha256) throw new Error(`${path} is not the golden file of the manifest`);
  return body;
}

export const goldenTensor = (rollout: GoldenRollout, name: string): Float32Array =>
  npy.read(goldenFile(rollout, `${name}.npy`));

const rawPixels = async (png: Buffer): Promise<Uint8Array> =>
  new Uint8Array(await sharp(png).removeAlpha().raw().toBuffer());

/** All frames one after the other, the start frame first. */
export const goldenFrames = (rollout: GoldenRollout): Promise<Uint8Array> =>
  rawPixels(goldenFile(rollout, "frames.png"));

export async function goldenRequest(rollout: GoldenRollout, candidates = 1): Promise<EngineRequest> {
  const actions = goldenTensor(rollout, "actions");
  return {
    id: rollout.name,
    frame: await rawPixels(goldenFile(rollout, "start_frame.png")),
    actions: Array.from({ length: candidates }, () => actions.slice()),
    seed: BigInt(rollout.seed),
    numSteps: rollout.num_steps,
    guidance: rollout.guidance,
    prompt: rollout.prompt,
    lane: "realtime",
    spec: "served",
    alone: false,
  };
}

/** Mean absolute difference in 0–255 levels of each frame. */
export function frameErrors(a: Uint8Array, b: Uint8Array, frameBytes: number): number[] {
  return Array.from({ length: b.length / frameBytes }, (_, frame) => {
    let sum = 0;
    for (let i = frame * frameBytes; i < (frame + 1) * frameBytes; i++) sum += Math.abs((a[i] ?? NaN) - (b[i] ?? NaN));
    return sum / frameBytes;
  });
}
