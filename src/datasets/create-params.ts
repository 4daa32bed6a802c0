/** `params` of `POST /v1/datasets`: JSON text, all of it optional. */
import { ApiError } from "#contract/errors.ts";
import { type Mils, mils, milsFromUsd } from "#contract/mils.ts";
import type { RequestedParams } from "#inputs/params.ts";
import { checkOutboundUrl } from "#platform/outbound.ts";

import { type Fields, isStorableText, metadataOf, parseFields, shown } from "./json-fields.ts";

export interface CreateParams {
  readonly name: string | null;
  /** A slug; undefined: the model of the base URL. */
  readonly model: string | undefined;
  readonly on_invalid: "skip" | "reject";
  readonly budget_mils: Mils | null;
  readonly start: boolean;
  readonly webhook_url: string | null;
  /** Sampling of rows that say nothing of their own. */
  readonly defaults: RequestedParams;
  readonly metadata: Fields;
}

const FIELDS = [
  "name",
  "model",
  "on_invalid",
  "budget_mils",
  "budget_usd",
  "start",
  "webhook_url",
  "seed",
  "num_steps",
  "guidance",
  "prompt",
  "metadata",
] as const;

const NAME_CHARS_MAX = 200;

/** Throws ApiError(invalid_input, url_not_allowed) naming the field. Undefined: there was no such part. */
export function parseCreateParams(text: string | undefined, allowPrivateUrls: boolean): CreateParams {
  const fields = text === undefined ? {} : parseFields(text, FIELDS, "params: ");
  const { seed, num_steps, guidance, prompt } = fields;
  return {
    name: textOf(fields["name"], "params.name", NAME_CHARS_MAX),
    model: textOf(fields["model"], "params.model", NAME_CHARS_MAX) ?? undefined,
    on_invalid: onInvalid(fields["on_invalid"]),
    budget_mils: budgetOf(fields),
    start: startOf(fields["start"]),
    webhook_url: webhookUrl(fields["webhook_url"], allowPrivateUrls),
    // What is undefined here is not given, for samplingParams, too.
    defaults: { seed, num_steps, guidance, prompt },
    metadata: metadataOf(fields["metadata"], "params.metadata"),
  };
}

function refuse(field: string, expected: string, got: unknown): never {
  throw new ApiError("invalid_input", `${field}: expected ${expected}, got ${shown(got)}`);
}

function textOf(value: unknown, field: string, charsMax: number): string | null {
  if (value === undefined) return null;
  if (typeof value === "string" && value.length >= 1 && value.length <= charsMax && isStorableText(value)) return value;
  return refuse(field, `text of 1 to ${charsMax} characters`, value);
}

function onInvalid(value: unknown): "skip" | "reject" {
  if (value === undefined) return "skip";
  return value === "skip" || value === "reject" ? value : refuse("params.on_invalid", '"skip" or "reject"', value);
}

function startOf(value: unknown): boolean {
  if (value === undefined) return true;
  return typeof value === "boolean" ? value : refuse("params.start", "true or false", value);
}

function webhookUrl(value: unknown, allowPrivateUrls: boolean): string | null {
  if (value === undefined) return null;
  if (typeof value !== "string") return refuse("params.webhook_url", "a URL", value);
  checkOutboundUrl(value, "params.webhook_url", allowPrivateUrls);
  return value;
}

/** A budget in one of its two forms; null where there is none. For resuming, too. Throws ApiError(invalid_input). */
export function budgetOf({ budget_mils, budget_usd }: Fields): Mils | null {
  if (budget_mils !== undefined && budget_usd !== undefined) {
    throw new ApiError("invalid_input", "params: expected one of budget_mils and budget_usd, got both");
  }
  if (budget_mils !== undefined) {
    if (typeof budget_mils === "number" && Number.isSafeInteger(budget_mils) && budget_mils >= 0)
      return mils(budget_mils);
    return refuse("params.budget_mils", "a whole number of mils (1 mil = $0.0001)", budget_mils);
  }
  if (budget_usd === undefined) return null;
  const expected = "dollars with at most four decimals, such as 25 or 25.50";
  if (typeof budget_usd !== "number" && typeof budget_usd !== "string") {
    return refuse("params.budget_usd", expected, budget_usd);
  }
  try {
    return milsFromUsd(String(budget_usd));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return refuse("params.budget_usd", expected, budget_usd);
  }
}
