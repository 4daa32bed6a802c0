/**
 * A line of a manifest: what it says of a row, checked as far as the line itself can tell. Where its inputs are is looked
 * at next (row-inputs.ts).
 */
import { ApiError } from "#contract/errors.ts";
import { parseUploadId, type UploadId } from "#contract/ids.ts";
import { ACTIONS_PER_ROLLOUT_MAX, DATASET_LINE_BYTES_MAX, BODY_BYTES_MAX } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { SamplingParams } from "#contract/rollout.ts";
import { npyOf } from "#inputs/npy-write.ts";
import { type RequestedParams, samplingParams } from "#inputs/params.ts";
import { checkOutboundUrl } from "#platform/outbound.ts";

import { type Fields, isStorableText, metadataOf, parseFields, shown } from "./json-fields.ts";
import type { Line } from "./line-splitter.ts";

/** An input as the manifest names it. */
export type NamedInput =
  | { readonly kind: "url"; readonly url: string }
  | { readonly kind: "upload"; readonly id: UploadId }
  | { readonly kind: "bytes"; readonly bytes: Buffer }
  /** An entry of the archive that the manifest came in. */
  | { readonly kind: "file"; readonly name: string };

export interface NamedRow {
  readonly n: number;
  readonly row_id: string;
  readonly frame: NamedInput;
  readonly actions: NamedInput;
  /** What the manifest says of them. */
  readonly num_actions: number | null;
  readonly params: SamplingParams;
  readonly metadata: Fields;
}

export interface BadRow {
  readonly n: number;
  /** Null where it has none that could be told. */
  readonly row_id: string | null;
  readonly code: string;
  readonly message: string;
}

export const isBad = (row: object): row is BadRow => "code" in row;

export interface ManifestRules {
  readonly model: Manifest;
  /** Sampling of rows that say nothing of their own. */
  readonly defaults: RequestedParams;
  readonly allowPrivateUrls: boolean;
  /** Whether rows may name entries of an archive. */
  readonly filesAllowed: boolean;
}

const ROW_FIELDS = [
  "id",
  "start_frame",
  "actions",
  "num_actions",
  "seed",
  "num_steps",
  "guidance",
  "prompt",
  "metadata",
] as const;

export const ROW_ID = /^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$/;
const ROW_ID_EXPECTED = '1 to 100 letters, digits, "_", "." or "-", not beginning with "."';

/** Never throws on what a line says: a bad one is a BadRow with the reason. */
export function parseManifestLine(line: Line, rules: ManifestRules): NamedRow | BadRow {
  if (line.bytes === null) {
    const message = `expected a line of at most ${DATASET_LINE_BYTES_MAX} bytes, got ${line.length}; upload its inputs with POST /v1/uploads and name them`;
    return { n: line.n, row_id: null, code: "line_too_long", message };
  }
  let row_id: string | null = null;
  try {
    const fields = parseFields(decode(line.bytes), ROW_FIELDS, "");
    row_id = rowId(fields["id"], line.n);
    return namedRow(fields, line.n, row_id, rules);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return { n: line.n, row_id: row_id ?? idIn(line.bytes), code: error.code, message: error.message };
  }
}

/** Of a line that is bad before its fields are looked at, one by one; null where it names none that can be one. */
function idIn(bytes: Buffer): string | null {
  let line: unknown;
  try {
    line = JSON.parse(bytes.toString("utf8"));
  } catch {
    return null; // it is bad for that, and has been told so
  }
  const id = typeof line === "object" && line !== null && "id" in line ? line.id : null;
  return typeof id === "string" && ROW_ID.test(id) ? id : null;
}

function decode(bytes: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new ApiError("invalid_input", "expected a JSON object in UTF-8, got other bytes", { cause: error });
  }
}

function rowId(value: unknown, n: number): string {
  if (value === undefined) return `row-${String(n).padStart(6, "0")}`;
  if (typeof value === "string" && ROW_ID.test(value)) return value;
  throw new ApiError("invalid_input", `id: expected ${ROW_ID_EXPECTED}, got ${shown(value)}`);
}

function namedRow(fields: Fields, n: number, row_id: string, rules: ManifestRules): NamedRow {
  const frame = namedInput(fields["start_frame"], "start_frame", rules);
  const actions = Array.isArray(fields["actions"])
    ? { kind: "bytes" as const, bytes: actionsFile(fields["actions"], rules.model.shapes.action_dim) }
    : namedInput(fields["actions"], "actions", rules);
  return {
    n,
    row_id,
    frame,
    actions,
    num_actions: numActions(fields["num_actions"], rules.model),
    params: paramsOf(fields, rules),
    metadata: metadataOf(fields["metadata"], "metadata"),
  };
}

function paramsOf(fields: Fields, { defaults, model }: ManifestRules): SamplingParams {
  const own: Record<string, unknown> = {};
  for (const name of ["seed", "num_steps", "guidance", "prompt"]) {
    if (fields[name] !== undefined) own[name] = fields[name];
  }
  return samplingParams({ ...defaults, ...own }, model);
}

function numActions(value: unknown, { shapes: { chunk_size } }: Manifest): number | null {
  if (value === undefined) return null;
  const fits = typeof value === "number" && Number.isInteger(value) && value >= 1 && value % chunk_size === 0;
  if (fits && value <= ACTIONS_PER_ROLLOUT_MAX) return value;
  throw new ApiError(
    "invalid_input",
    `num_actions: expected a positive multiple of ${chunk_size}, at most ${ACTIONS_PER_ROLLOUT_MAX}, got ${shown(value)}`,
  );
}

function namedInput(value: unknown, field: "start_frame" | "actions", rules: ManifestRules): NamedInput {
  const [[kind, named] = ["", undefined], ...others] =
    typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : [];
  if (typeof named !== "string" || others.length > 0) throw notAnInput(value, field, rules);
  switch (kind) {
    case "url":
      checkOutboundUrl(named, `${field}.url`, rules.allowPrivateUrls);
      return { kind, url: named };
    case "upload": {
      const id = parseUploadId(named);
      if (id) return { kind, id };
      const expected = "the id that POST /v1/uploads gave (upload_ and 32 hexadecimal digits)";
      throw new ApiError("invalid_input", `${field}.upload: expected ${expected}, got ${shown(named)}`);
    }
    case "base64":
      return { kind: "bytes", bytes: base64Bytes(named, field) };
    case "file":
      if (rules.filesAllowed && named !== "" && isStorableText(named)) return { kind, name: named };
      throw notAnInput(value, field, rules);
    default:
      throw notAnInput(value, field, rules);
  }
}

function notAnInput(value: unknown, field: string, { filesAllowed, model }: ManifestRules): ApiError {
  const forms = ['{"url": …}', '{"upload": …}', '{"base64": …}', ...(filesAllowed ? ['{"file": …}'] : [])];
  if (field === "actions") forms.push(`an array of actions of ${model.shapes.action_dim} numbers each`);
  const got = value === undefined ? "none" : shown(value);
  return new ApiError("invalid_input", `${field}: expected ${forms.join(" or ")}, got ${got}`);
}

function base64Bytes(text: string, field: string): Buffer {
  // Buffer.from stops at the first character that does not belong, and says nothing.
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(text)) {
    throw new ApiError("invalid_input", `${field}.base64: expected standard base64 with padding, got ${shown(text)}`);
  }
  const bytes = Buffer.from(text, "base64");
  if (bytes.length <= BODY_BYTES_MAX) return bytes;
  throw new ApiError("invalid_input", `${field}.base64: expected at most ${BODY_BYTES_MAX} bytes, got ${bytes.length}`);
}

/** Actions as numbers: `[[…], …]`, to the file that numpy would save. Their count and values are checked with all files. */
function actionsFile(actions: readonly unknown[], actionDim: number): Buffer {
  const values: number[] = [];
  for (const [index, action] of actions.entries()) {
    if (!Array.isArray(action) || action.length !== actionDim) {
      const got = Array.isArray(action) ? `${action.length}` : shown(action);
      throw new ApiError("invalid_input", `actions[${index}]: expected an array of ${actionDim} numbers, got ${got}`);
    }
    for (const value of action as readonly unknown[]) {
      if (typeof value !== "number") {
        throw new ApiError("invalid_input", `actions[${index}]: expected numbers, got ${shown(value)}`);
      }
      values.push(value);
    }
  }
  return npyOf(values, actions.length, actionDim);
}
