/** The rollouts of bench/held-out/: what the quality gate and the benches dream of. No training has seen them. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { Type } from "typebox";
import { Compile } from "typebox/compile";

import type { Manifest } from "#contract/manifest.ts";
import { npy } from "#test/support/npy.ts";
import { decodeFrame } from "#workers/inference/inputs.ts";

const FOLDER = join(import.meta.dirname, "held-out");

const Size = Type.Integer({ minimum: 1 });
const HeldOutFile = Type.Object({
  actions: Size,
  action_dim: Size,
  /** Start frames are square and there in each of these. */
  sizes: Type.Array(Size),
  episodes: Type.Array(Type.Object({ seed: Type.Integer(), prompt: Type.String() })),
});
const heldOutSchema = Compile(HeldOutFile);

/** One start frame with what the simulator's agent did from there. */
export interface HeldOutRollout {
  /** Of its episode; names it, and does for the rollout's noise. */
  readonly seed: bigint;
  /** Says which of the simulator's physics it was. */
  readonly prompt: string;
  /** RGB at the model's resolution. */
  readonly frame: Uint8Array;
  /** `[T, action_dim]`, units of the environment. */
  readonly actions: Float32Array;
}

export interface HeldOutWanted {
  /** The first so many episodes; all, if unset. */
  readonly count?: number;
  /** The first so many of an episode's actions, a multiple of the model's chunk; as many chunks as there are, if unset. */
  readonly actions?: number;
}

/** Throws when the files have no such rollouts for this model. */
export async function loadHeldOut(manifest: Manifest, wanted: HeldOutWanted = {}): Promise<HeldOutRollout[]> {
  const file: unknown = JSON.parse(await readFile(join(FOLDER, "held-out.json"), "utf8"));
  if (!heldOutSchema.Check(file)) throw new Error(`${FOLDER}/held-out.json is not what make.py writes`);
  const { slug, shapes } = manifest;
  const { width, height, action_dim: actionDim, chunk_size: chunk } = shapes;
  if (width !== height || !file.sizes.includes(width) || actionDim !== file.action_dim) {
    throw new Error(
      `${slug} takes frames of ${width}×${height} and ${actionDim} numbers an action; the held-out rollouts have ` +
        `${file.sizes.map((size) => `${size}×${size}`).join(" or ")} and ${file.action_dim}`,
    );
  }
  const { count = file.episodes.length, actions = file.actions - (file.actions % chunk) } = wanted;
  checkCount("held-out rollouts", count, file.episodes.length, 1);
  checkCount(`actions for ${slug}`, actions, file.actions, chunk);
  return Promise.all(
    file.episodes.slice(0, count).map(async ({ seed, prompt }): Promise<HeldOutRollout> => {
      const [png, taken] = await Promise.all([
        readFile(join(FOLDER, `${seed}-${width}.png`)),
        readFile(join(FOLDER, `${seed}.npy`)),
      ]);
      const all = npy.read(taken);
      if (all.length !== file.actions * actionDim) throw new Error(`${FOLDER}/${seed}.npy: ${all.length} numbers`);
      return {
        seed: BigInt(seed),
        prompt,
        frame: await decodeFrame(png, manifest),
        actions: all.slice(0, actions * actionDim),
      };
    }),
  );
}

function checkCount(what: string, wanted: number, most: number, step: number): void {
  if (Number.isInteger(wanted) && wanted >= step && wanted <= most && wanted % step === 0) return;
  throw new Error(`${wanted} ${what}: expected a multiple of ${step} from ${step} to ${most}`);
}
