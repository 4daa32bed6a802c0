/**
 * Which optimisations a rollout runs with. What the engine serves is what the bundle can do and the process was not
 * told to leave; the base spec leaves them all, and is what `score` and the gate compare with. Both may be live in one
 * engine at once.
 */
import { type Manifest, OPTIMISATION_NAMES, type OptimisationName, type TeaCache } from "#contract/manifest.ts";

export interface Optimisations {
  /** At guidance 0 there is no unconditional pass; without it the pass is run and counts for nothing. */
  readonly guidanceShortcut: boolean;
  /** Timestep rows once a schedule and cross-attention K/V once a prompt; without it in every denoising forward. */
  readonly timestepLut: boolean;
  /** The text encoder runs once a prompt; without it once a rollout. */
  readonly textCache: boolean;
  /** The body's query, key and value from one matrix; without it `denoiser_body_unfused`. */
  readonly fusedQkv: boolean;
  readonly teacache: TeaCache | null;
}

export type SpecName = "served" | "base";

export interface Specs extends Readonly<Record<SpecName, Optimisations>> {
  /** What no switch turns off, because the bundle has nothing else: `fused_qkv` where no unfused graph is there. */
  readonly fixed: readonly OptimisationName[];
}

/** An optimisation was asked for that the bundle does not have. */
export class OptimisationMissing extends Error {
  override readonly name = "OptimisationMissing";
}

/** `wanted` undefined: all that the bundle has. Throws OptimisationMissing. */
export function specsOf(manifest: Manifest, wanted: readonly OptimisationName[] | undefined): Specs {
  const { optimisations } = manifest.engine;
  const had = OPTIMISATION_NAMES.filter((name) => Boolean(optimisations[name]));
  const missing = wanted?.filter((name) => !had.includes(name)) ?? [];
  if (missing.length > 0) {
    throw new OptimisationMissing(
      `${manifest.slug} does not have ${missing.join(", ")}; it has ${had.join(", ") || "none"}`,
    );
  }
  const fixed = had.filter((name) => name === "fused_qkv" && !manifest.graphs.denoiser_body_unfused);
  const withOnly = (names: readonly OptimisationName[]): Optimisations => {
    const isOn = (name: OptimisationName) => names.includes(name) || fixed.includes(name);
    return {
      guidanceShortcut: isOn("guidance_shortcut"),
      timestepLut: isOn("timestep_lut"),
      textCache: isOn("text_cache"),
      fusedQkv: isOn("fused_qkv"),
      teacache: isOn("teacache") ? optimisations.teacache : null,
    };
  };
  return { served: withOnly(wanted ?? had), base: withOnly([]), fixed };
}

/** The names of those that are on, for logs. */
export function namesOf(optimisations: Optimisations): OptimisationName[] {
  const { guidanceShortcut, timestepLut, textCache, fusedQkv, teacache } = optimisations;
  const isOn: Record<OptimisationName, boolean> = {
    guidance_shortcut: guidanceShortcut,
    timestep_lut: timestepLut,
    text_cache: textCache,
    fused_qkv: fusedQkv,
    teacache: teacache !== null,
  };
  return OPTIMISATION_NAMES.filter((name) => isOn[name]);
}
