/** What the gate asks of a bundle: the ways of sampling in which served and base spec could come apart. */
import type { Manifest } from "#contract/manifest.ts";

/** Where the bundle's default is shorter: DreamDojo's own number of steps, and the most that TeaCache was fitted with. */
const LONGEST_STEPS = 35;
/** What is asked of a bundle whose default is 0; pusht-small is harmed by 3 and more (its CARD.md). */
const GUIDANCE = 1.5;

export interface GateSetting {
  readonly numSteps: number;
  readonly guidance: number;
  /** The more, the further small differences are carried: a chunk begins with the frame that ends the one before. */
  readonly chunks: number;
}

/**
 * The default; the same with guidance turned on (off, where it is the default); the longest sampler. That one dreams one
 * chunk only, because it takes several times as long a chunk.
 */
export function settingsOf({ sampler }: Pick<Manifest, "sampler">, chunks: number): GateSetting[] {
  const { default_num_steps: numSteps, default_guidance: guidance } = sampler;
  return [
    { numSteps, guidance, chunks },
    { numSteps, guidance: guidance === 0 ? GUIDANCE : 0, chunks },
    ...(numSteps < LONGEST_STEPS ? [{ numSteps: LONGEST_STEPS, guidance, chunks: 1 }] : []),
  ];
}

export const nameOf = ({ numSteps, guidance, chunks }: GateSetting): string =>
  `${numSteps} steps, guidance ${guidance}, ${chunks} ${chunks === 1 ? "chunk" : "chunks"}`;
