/**
 * What a sample is conditioned on and many samples share, each computed once where the optimisations allow: the text
 * tensors of a prompt (LRUs with the empty prompt and the null sequence always there) and the timestep rows of a
 * schedule.
 */
import type { GraphName, Manifest } from "#contract/manifest.ts";

import type { EngineCounters } from "./counters.ts";
import type { Optimisations } from "./optimisations.ts";
import type { RunChain } from "./run-chain.ts";
import { schedule } from "./sampler.ts";
import { float32, int64, rowsOf, type Tensors } from "./tensor.ts";
import { type Prompt, tokenize } from "./text.ts";

/** Prompts kept beside "" and null, in each cache. A planner has one or two. */
const PROMPTS_KEPT = 64;
/** And their tensors' bytes: a prompt's K/V are hundreds of MB in a model of billions of parameters. */
const PROMPT_BYTES_KEPT = 512 * 2 ** 20;

/**
 * The steps of one (num_steps, shift): `t` has num_steps + 1 values, `rows` one a step: `t` itself and, where it is
 * tabulated, what the timestep graph gives for it.
 */
export interface Timesteps {
  readonly t: Float32Array;
  readonly rows: readonly Tensors[];
}

export interface Conditioning {
  text(prompt: Prompt, optimisations: Optimisations): Promise<Tensors>;
  timesteps(numSteps: number, optimisations: Optimisations): Promise<Timesteps>;
}

export interface ConditioningOptions {
  readonly manifest: Manifest;
  readonly run: RunChain;
  readonly counters: EngineCounters;
  /** What most rollouts run with: decides what is computed ahead. */
  readonly served: Optimisations;
  readonly hasTextKv: boolean;
}

export async function createConditioning(options: ConditioningOptions): Promise<Conditioning> {
  const { manifest, run, counters, served, hasTextKv } = options;
  const { max_tokens: maxTokens } = manifest.text;
  const encodings = createPromptCache(PROMPT_BYTES_KEPT);
  const keysAndValues = createPromptCache(PROMPT_BYTES_KEPT);
  // At most NUM_STEPS_MAX schedules exist, so this needs no limit of its own.
  const tabulated = new Map<number, Timesteps>();

  async function encode(prompt: Prompt): Promise<Tensors> {
    counters.text_cache_misses += 1;
    const { ids, mask } = tokenize(prompt, maxTokens);
    return extend("text_encoder", {
      text_ids: int64([maxTokens], ids),
      text_mask: float32([maxTokens], mask),
    });
  }

  async function extend(graph: GraphName, row: Tensors): Promise<Tensors> {
    return { ...row, ...rowsOf(await run([graph], [row]), 0) };
  }

  async function cachedEncoding(prompt: Prompt): Promise<Tensors> {
    const known = encodings.get(prompt);
    if (known) counters.text_cache_hits += 1;
    return known ?? encodings.put(prompt, await encode(prompt));
  }

  async function text(prompt: Prompt, { textCache, timestepLut }: Optimisations): Promise<Tensors> {
    const encoding = await (textCache ? cachedEncoding(prompt) : encode(prompt));
    if (!hasTextKv || !timestepLut) return encoding;
    return keysAndValues.get(prompt) ?? keysAndValues.put(prompt, await extend("text_kv", encoding));
  }

  async function tabulate(t: Float32Array, inputs: readonly Tensors[]): Promise<Timesteps> {
    const batch = await run(["timestep"], inputs);
    return { t, rows: inputs.map((input, i) => ({ ...input, ...rowsOf(batch, i) })) };
  }

  if (served.textCache) for (const prompt of ["", null]) await text(prompt, served);

  return {
    text,

    async timesteps(numSteps, { timestepLut }) {
      const known = timestepLut && tabulated.get(numSteps);
      if (known) return known;
      const t = schedule(numSteps, manifest.sampler.shift);
      const inputs = Array.from(t.subarray(0, numSteps), (value) => ({ t: float32([], Float32Array.of(value)) }));
      if (!timestepLut) return { t, rows: inputs };
      const made = await tabulate(t, inputs);
      tabulated.set(numSteps, made);
      return made;
    },
  };
}

/** Exported for its test. The latest prompts up to `bytesMax`, the latest of all however large it is. */
export function createPromptCache(bytesMax: number) {
  const pinned = new Map<Prompt, Tensors>();
  const recent = new Map<Prompt, Tensors>();
  let bytes = 0;

  function put(prompt: Prompt, tensors: Tensors): Tensors {
    if (prompt === "" || prompt === null) {
      pinned.set(prompt, tensors);
      return tensors;
    }
    // A Map iterates in order of insertion: putting it in again makes it the most recent.
    drop(prompt);
    recent.set(prompt, tensors);
    bytes += bytesIn(tensors);
    for (const oldest of recent.keys()) {
      if (recent.size <= PROMPTS_KEPT && (bytes <= bytesMax || recent.size === 1)) break;
      drop(oldest);
    }
    return tensors;
  }

  function drop(prompt: Prompt): void {
    bytes -= bytesIn(recent.get(prompt) ?? {});
    recent.delete(prompt);
  }

  return {
    put,
    get(prompt: Prompt): Tensors | undefined {
      const known = pinned.get(prompt) ?? recent.get(prompt);
      return known && put(prompt, known);
    },
  };
}

const bytesIn = (tensors: Tensors): number =>
  Object.values(tensors).reduce((sum, { data }) => sum + data.byteLength, 0);
