/**
 * What a caller may say about a rollout, from form fields (text) or from the JSON of `params`, as the canonical
 * SamplingParams. Both ways give the same values for the same request: the fingerprint is taken of them.
 */
import { ApiError } from "#contract/errors.ts";
import {
  ASYNC_EXPIRES_S_DEFAULT,
  ASYNC_EXPIRES_S_MAX,
  GUIDANCE_MAX,
  GUIDANCE_MIN,
  NUM_STEPS_MAX,
  NUM_STEPS_MIN,
  PROMPT_BYTES_MAX,
  SCORED_SIDE_MIN,
} from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { SamplingParams } from "#contract/rollout.ts";

/** Values as they were sent; `seed` keeps its digits, because a JSON number past 2^53 would lose some. */
export interface RequestedParams {
  readonly seed?: unknown;
  readonly num_steps?: unknown;
  readonly guidance?: unknown;
  readonly prompt?: unknown;
}

/** Throws ApiError(invalid_input) naming the field, what it takes and what came. */
export function samplingParams(requested: RequestedParams, manifest: Manifest): SamplingParams {
  return {
    seed: requested.seed === undefined ? "0" : canonicalSeed(requested.seed),
    num_steps: requested.num_steps === undefined ? manifest.sampler.default_num_steps : numSteps(requested.num_steps),
    guidance: requested.guidance === undefined ? manifest.sampler.default_guidance : guidance(requested.guidance),
    prompt: requested.prompt === undefined ? "" : prompt(requested.prompt),
  };
}

const SEED_MIN = -(2n ** 63n);
const SEED_MAX = 2n ** 64n - 1n;
/** Longest accepted text of a number; more digits only cost time. */
const NUMBER_CHARS_MAX = 40;

/** An integer of the signed or the unsigned 64-bit range, modulo 2^64, as decimal text: −1 is 18446744073709551615. */
function canonicalSeed(value: unknown): string {
  const text = typeof value === "number" ? String(value) : value;
  if (typeof text === "string" && text.length <= NUMBER_CHARS_MAX && /^[+-]?\d+$/.test(text)) {
    const seed = BigInt(text.replace("+", ""));
    if (seed >= SEED_MIN && seed <= SEED_MAX) return String(BigInt.asUintN(64, seed));
  }
  return refuse("seed", "an integer from -2^63 to 2^64 - 1", value);
}

function numSteps(value: unknown): number {
  const steps = numberOf(value);
  if (Number.isInteger(steps) && steps >= NUM_STEPS_MIN && steps <= NUM_STEPS_MAX) return steps;
  return refuse("num_steps", `an integer from ${NUM_STEPS_MIN} to ${NUM_STEPS_MAX}`, value);
}

function guidance(value: unknown): number {
  const scale = numberOf(value);
  // Adding zero turns −0 into 0: they are one request and one fingerprint.
  if (scale >= GUIDANCE_MIN && scale <= GUIDANCE_MAX) return scale + 0;
  return refuse("guidance", `a number from ${GUIDANCE_MIN} to ${GUIDANCE_MAX}`, value);
}

function prompt(value: unknown): string {
  if (typeof value !== "string") return refuse("prompt", "text", value);
  const bytes = Buffer.byteLength(value, "utf8");
  if (bytes > PROMPT_BYTES_MAX) {
    throw new ApiError("invalid_input", `prompt: expected at most ${PROMPT_BYTES_MAX} bytes of UTF-8, got ${bytes}`);
  }
  // Neither can be stored: PostgreSQL's JSON refuses both.
  if (value.includes("\0") || !value.isWellFormed()) {
    return refuse("prompt", "text without NUL characters and lone surrogates", value);
  }
  return value;
}

/** A JSON number, or decimal text as a form sends it; NaN for everything else. */
function numberOf(value: unknown): number {
  if (typeof value === "number") return value;
  if (typeof value !== "string" || value.length > NUMBER_CHARS_MAX) return NaN;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?$/i.test(value) ? Number(value) : NaN;
}

/** `score` of a form, whose fields are text: "True" is what some clients make of a truth value. */
export function scoreOfForm(text: string | undefined): boolean {
  const value = text?.toLowerCase();
  if (value === undefined || value === "false") return false;
  return value === "true" || refuse("score", "true or false", text);
}

/** Throws ApiError(not_supported) for a model whose frames the metrics cannot take. */
export function assertScorable({ slug, shapes: { height, width } }: Manifest): void {
  if (Math.min(height, width) >= SCORED_SIDE_MIN) return;
  throw new ApiError(
    "not_supported",
    `score: frames of ${slug} are ${height} × ${width}, expected at least ${SCORED_SIDE_MIN} pixels a side; ` +
      "leave it out or send false",
  );
}

/** How much of a wrong value a message repeats. */
const SHOWN_CHARS_MAX = 60;

function refuse(name: string, expected: string, value: unknown): never {
  const shown = JSON.stringify(value) ?? String(value);
  const got = shown.length > SHOWN_CHARS_MAX ? `${shown.slice(0, SHOWN_CHARS_MAX)}…` : shown;
  throw new ApiError("invalid_input", `${name}: expected ${expected}, got ${got}`);
}

/** The fields of `params` on `POST /v1/rollouts`. */
const PARAMS_FIELDS = [
  "model",
  "seed",
  "score",
  "num_steps",
  "guidance",
  "prompt",
  "mode",
  "expires_in_s",
  "webhook_url",
] as const;
type ParamsField = (typeof PARAMS_FIELDS)[number];
type ParamsObject = { readonly [Field in ParamsField]?: unknown };

/** Whether the caller waits for the end on its connection; if not, how long the rollout may wait for its start. */
export type Mode = { readonly kind: "sync" } | { readonly kind: "async"; readonly expires_in_s: number };

export interface RolloutParams extends RequestedParams {
  readonly model: string | undefined;
  readonly mode: Mode;
  readonly scored: boolean;
  /** Text; whether it is a URL that may be called is for src/platform/outbound.ts to say. */
  readonly webhook_url: string | null;
}

/** Reads `params`; refuses by name what it does not know, never ignores it. */
export function parseParams(text: string | undefined): RolloutParams {
  const { model, score, mode, expires_in_s, webhook_url, ...sampling } =
    text === undefined ? {} : parseParamsObject(text);
  if (model !== undefined && typeof model !== "string") refuse("params.model", "a model's slug", model);
  if (score !== undefined && typeof score !== "boolean") refuse("params.score", "true or false", score);
  return {
    ...sampling,
    model,
    mode: modeOf(mode, expires_in_s),
    scored: score === true,
    webhook_url: webhookUrlOf(webhook_url),
  };
}

/** Neither NUL nor a lone surrogate can be stored, and a URL has no need of them. */
function webhookUrlOf(value: unknown): string | null {
  if (value === undefined) return null;
  if (typeof value === "string" && /^[\x21-\x7e]+$/.test(value)) return value;
  return refuse("params.webhook_url", "a URL in visible ASCII characters", value);
}

function modeOf(mode: unknown, expires_in_s: unknown): Mode {
  if (mode !== undefined && mode !== "sync" && mode !== "async") refuse("params.mode", '"sync" or "async"', mode);
  if (mode !== "async") {
    if (expires_in_s === undefined) return { kind: "sync" };
    return refuse("params.expires_in_s", 'it together with mode "async" alone', expires_in_s);
  }
  if (expires_in_s === undefined) return { kind: "async", expires_in_s: ASYNC_EXPIRES_S_DEFAULT };
  const seconds = Number(expires_in_s);
  const isWithin = Number.isInteger(seconds) && seconds >= 1 && seconds <= ASYNC_EXPIRES_S_MAX;
  if (typeof expires_in_s === "number" && isWithin) return { kind: "async", expires_in_s };
  return refuse("params.expires_in_s", `an integer from 1 to ${ASYNC_EXPIRES_S_MAX} (seconds)`, expires_in_s);
}

function parseParamsObject(text: string): ParamsObject {
  let value: unknown;
  try {
    value = JSON.parse(text, keepSeedDigits);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ApiError("invalid_input", `params: expected a JSON object, got text that is not JSON (${reason})`, {
      cause: error,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return refuse("params", "a JSON object", value);
  }
  const fields: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(value)) {
    if (!PARAMS_FIELDS.some((known) => known === name)) {
      throw new ApiError(
        "invalid_input",
        `params: unknown field ${JSON.stringify(name)}; expected ${PARAMS_FIELDS.join(", ")}`,
      );
    }
    // The client of some languages writes null for "not given".
    if (field !== null) fields[name] = field;
  }
  return fields;
}

/** A JSON.parse reviver. Its third argument (ECMAScript "JSON.parse source text access") is not in TypeScript's library yet. */
function keepSeedDigits(this: unknown, key: string, value: unknown, context?: { source?: string }): unknown {
  return key === "seed" && typeof value === "number" && context?.source !== undefined ? context.source : value;
}
