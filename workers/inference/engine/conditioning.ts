/**
 * What a sample is conditioned on and many samples share, each computed once: the text tensors of a prompt (an LRU,
 * the empty prompt and the null sequence always there) and the timestep rows of a schedule.
 */
import type { Manifest } from "#contract/manifest.ts";

import type { EngineCounters } from "./counters.ts";
import type { RunChain } from "./run-chain.ts";
import { schedule } from "./sampler.ts";
import { float32, int64, rowsOf, type Tensors } from "./tensor.ts";
import { type Prompt, tokenize } from "./text.ts";

/** Prompts kept beside "" and null. A planner has one or two; the limit bounds memory (a big model's K/V are MBs). */
const PROMPTS_KEPT = 64;

/** The steps of one (num_steps, shift): `t` has num_steps + 1 values, `rows` what the timestep graph gives at each step. */
export interface Timesteps {
  readonly t: Float32Array;
  readonly rows: readonly Tensors[];
}

export interface Conditioning {
  text(prompt: Prompt): Promise<Tensors>;
  timesteps(numSteps: number): Promise<Timesteps>;
}

export async function createConditioning(
  manifest: Manifest,
  run: RunChain,
  counters: EngineCounters,
): Promise<Conditioning> {
  const { max_tokens: maxTokens } = manifest.text;

  async function encodeText(prompt: Prompt): Promise<Tensors> {
    counters.text_cache_misses += 1;
    const { ids, mask } = tokenize(prompt, maxTokens);
    const input = { text_ids: int64([maxTokens], ids), text_mask: float32([maxTokens], mask) };
    return { ...input, ...rowsOf(await run("text", [input]), 0) };
  }

  const pinned = new Map<Prompt, Tensors>([
    ["", await encodeText("")],
    [null, await encodeText(null)],
  ]);
  const recent = new Map<Prompt, Tensors>();
  // At most NUM_STEPS_MAX schedules exist, so this needs no limit of its own.
  const schedules = new Map<number, Timesteps>();

  return {
    async text(prompt) {
      const always = pinned.get(prompt);
      if (always) return always;
      const known = recent.get(prompt);
      if (known) counters.text_cache_hits += 1;
      const tensors = known ?? (await encodeText(prompt));
      // A Map iterates in order of insertion: putting it in again makes it the most recent.
      recent.delete(prompt);
      recent.set(prompt, tensors);
      const [oldest] = recent.keys();
      if (recent.size > PROMPTS_KEPT && oldest !== undefined) recent.delete(oldest);
      return tensors;
    },

    async timesteps(numSteps) {
      const known = schedules.get(numSteps);
      if (known) return known;
      const t = schedule(numSteps, manifest.sampler.shift);
      const inputs = Array.from(t.subarray(0, numSteps), (value) => ({ t: float32([], Float32Array.of(value)) }));
      const batch = await run("timestep", inputs);
      const made = { t, rows: inputs.map((input, i) => ({ ...input, ...rowsOf(batch, i) })) };
      schedules.set(numSteps, made);
      return made;
    },
  };
}
