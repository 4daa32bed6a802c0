/**
 * The bytes of a row's frame or actions: out of the blob store, or from the URL that its owner named. What goes wrong for
 * the moment is tried again; what stays wrong is an ApiError whose message is for the owner.
 */
import { setTimeout as delay } from "node:timers/promises";

import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { type Outbound, OutboundError, type OutboundReply } from "#platform/outbound.ts";

import type { InputRef } from "./row.ts";

/** The whole exchange; 32 MB come through 9 Mbit/s in it. */
const FETCH_TIMEOUT_MS = 30_000;
/** Before the second and the third try. */
export const FETCH_RETRY_DELAYS_MS: readonly number[] = [1_000, 4_000];

export interface FetchParts {
  readonly blobs: BlobStore;
  readonly outbound: Outbound;
  readonly retryDelaysMs: readonly number[];
  readonly signal: AbortSignal;
}

/** Throws ApiError(fetch_failed), or what `signal` was aborted with. `part` names the input in messages. */
export async function fetchInput(ref: InputRef, part: string, parts: FetchParts): Promise<Buffer> {
  if (ref.kind === "url") return await fetchUrl(ref.url, part, parts);
  return await parts.blobs.get(ref.key).catch((error: unknown) => {
    if (!(error instanceof BlobNotFound)) throw error;
    throw new ApiError("fetch_failed", `${part}: what was uploaded is not stored any more`, { cause: error });
  });
}

async function fetchUrl(url: string, part: string, { outbound, retryDelaysMs, signal }: FetchParts): Promise<Buffer> {
  for (let tries = 0; ; tries++) {
    const got = await get(outbound, url, signal);
    if ("body" in got) return got.body;
    const pauseMs = retryDelaysMs[tries];
    if (!got.again || pauseMs === undefined) {
      const times = tries === 0 ? "" : `, ${tries + 1} times`;
      throw new ApiError("fetch_failed", `${part}: GET ${shown(url)} ${got.problem}${times}`);
    }
    await delay(pauseMs, undefined, { signal });
  }
}

type Got = { readonly body: Buffer } | { readonly problem: string; readonly again: boolean };

async function get(outbound: Outbound, url: string, signal: AbortSignal): Promise<Got> {
  let reply: OutboundReply;
  try {
    reply = await outbound.request(url, {
      method: "GET",
      timeoutMs: FETCH_TIMEOUT_MS,
      bodyBytesMax: BODY_BYTES_MAX,
      signal,
    });
  } catch (error) {
    if (!(error instanceof OutboundError)) throw error;
    return { problem: `failed: ${error.message}`, again: true };
  }
  const { status, body, truncated } = reply;
  if (status !== 200) return { problem: `answered ${status}, expected 200`, again: status >= 500 || status === 429 };
  if (truncated) return { problem: `answered with more than ${BODY_BYTES_MAX / 2 ** 20} MB`, again: false };
  return { body };
}

/** How much of a URL a message repeats. */
const SHOWN_CHARS_MAX = 200;

/** Without its query, which often is a signature, and the message goes into a file that its owner passes on. */
function shown(url: string): string {
  const { origin, pathname } = new URL(url);
  const text = `${origin}${pathname}`;
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX)}…` : text;
}
