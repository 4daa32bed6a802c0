/**
 * The bytes of a row's frame or actions: out of the blob store, or from the URL that its owner named. What goes wrong for
 * the moment is tried again; what stays wrong is an ApiError whose message is for the owner.
 */
import { setTimeout as delay } from "node:timers/promises";

import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { type Outbound, OutboundError, type OutboundReply } from "#platform/outbound.ts";
import type { Slots } from "#platform/slots.ts";

import type { InputRef } from "./row.ts";

/** The whole exchange; 32 MB come through 9 Mbit/s in it. */
const FETCH_TIMEOUT_MS = 30_000;
/** Before the second and the third try. */
export const FETCH_RETRY_DELAYS_MS: readonly number[] = [1_000, 4_000];

/** Valid actions are a fifth of it; what may be larger is bounded by how many such files are held at once. */
const ACTIONS_BYTES_MAX = 2 ** 20;
/** Frames up to this many bytes are held as they come, so many a row; larger ones only with a slot of `large`. */
const SMALL_BYTES_MAX = 4 * 2 ** 20;

export interface FetchParts {
  readonly blobs: BlobStore;
  readonly outbound: Outbound;
  readonly retryDelaysMs: readonly number[];
  /** For files of up to BODY_BYTES_MAX, all turns of this process together: what they may hold of its memory. */
  readonly large: Slots;
  readonly signal: AbortSignal;
}

/** Throws ApiError(fetch_failed), or what `signal` was aborted with. */
export async function fetchActions(ref: InputRef, parts: FetchParts): Promise<Buffer> {
  if (ref.kind === "blob") return await getBlob(ref.key, "actions", parts);
  const file = await fetchUrl(ref.url, "actions", ACTIONS_BYTES_MAX, parts);
  if (file === "larger") throw tooLarge(ref.url, "actions", ACTIONS_BYTES_MAX);
  return file;
}

/**
 * A frame's file, as long as `use` needs it. `ofThese`: slots of the dataset for large ones, so that one whose server is
 * slow with them leaves some to others. Throws as fetchActions does, or what `use` throws.
 */
export async function withFrame<T>(
  ref: InputRef,
  ofThese: Slots,
  parts: FetchParts,
  use: (file: Buffer) => Promise<T>,
): Promise<T> {
  const part = "start_frame";
  const small = ref.kind === "url" ? await fetchUrl(ref.url, part, SMALL_BYTES_MAX, parts) : await smallBlob(ref.key);
  if (small !== "larger") return await use(small);
  const giveBackOwn = await ofThese.take();
  const giveBack = await parts.large.take();
  try {
    parts.signal.throwIfAborted();
    if (ref.kind === "blob") return await use(await getBlob(ref.key, part, parts));
    const file = await fetchUrl(ref.url, part, BODY_BYTES_MAX, parts);
    if (file === "larger") throw tooLarge(ref.url, part, BODY_BYTES_MAX);
    return await use(file);
  } finally {
    giveBack();
    giveBackOwn();
  }

  async function smallBlob(key: string): Promise<Buffer | "larger"> {
    const bytes = (await parts.blobs.info(key))?.bytes ?? 0;
    return bytes > SMALL_BYTES_MAX ? "larger" : await getBlob(key, part, parts);
  }
}

/** `part` names the input in messages. */
async function getBlob(key: string, part: string, { blobs }: FetchParts): Promise<Buffer> {
  return await blobs.get(key).catch((error: unknown) => {
    if (!(error instanceof BlobNotFound)) throw error;
    throw new ApiError("fetch_failed", `${part}: what was uploaded is not stored any more`, { cause: error });
  });
}

function tooLarge(url: string, part: string, bytesMax: number): ApiError {
  return new ApiError("fetch_failed", `${part}: GET ${shown(url)} answered with more than ${bytesMax / 2 ** 20} MB`);
}

async function fetchUrl(
  url: string,
  part: string,
  bytesMax: number,
  { outbound, retryDelaysMs, signal }: FetchParts,
): Promise<Buffer | "larger"> {
  for (let tries = 0; ; tries++) {
    const got = await get(outbound, url, bytesMax, signal);
    if ("body" in got) return got.body;
    const pauseMs = retryDelaysMs[tries];
    if (!got.again || pauseMs === undefined) {
      const times = tries === 0 ? "" : `, ${tries + 1} times`;
      throw new ApiError("fetch_failed", `${part}: GET ${shown(url)} ${got.problem}${times}`);
    }
    await delay(pauseMs, undefined, { signal });
  }
}

type Got = { readonly body: Buffer | "larger" } | { readonly problem: string; readonly again: boolean };

async function get(outbound: Outbound, url: string, bodyBytesMax: number, signal: AbortSignal): Promise<Got> {
  let reply: OutboundReply;
  try {
    reply = await outbound.request(url, {
      method: "GET",
      timeoutMs: FETCH_TIMEOUT_MS,
      bodyBytesMax,
      signal,
    });
  } catch (error) {
    if (!(error instanceof OutboundError)) throw error;
    return { problem: `failed: ${error.message}`, again: true };
  }
  const { status, body, truncated } = reply;
  if (status !== 200) return { problem: `answered ${status}, expected 200`, again: status >= 500 || status === 429 };
  return { body: truncated ? "larger" : body };
}

/** How much of a URL a message repeats. */
const SHOWN_CHARS_MAX = 200;

/** Without its query, which often is a signature, and the message goes into a file that its owner passes on. */
function shown(url: string): string {
  const { origin, pathname } = new URL(url);
  const text = `${origin}${pathname}`;
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX)}…` : text;
}
