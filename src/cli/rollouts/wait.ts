/** Waiting for rollouts: by long poll, from whatever process, as often as the connection breaks. */
import { setTimeout as delay } from "node:timers/promises";

import type { Api } from "../api/client.ts";
import { RolloutReply } from "../api/replies.ts";
import { EXIT, type ExitCode } from "../exit-codes.ts";

/** Where nobody watches a bar. Below what the server allows. */
const LONG_POLL_S = 30;
/** Between looks at frames that are drawn. */
const WATCHED_POLL_S = 1;
/** Slack for the answer of a long poll. */
const ANSWER_MS = 30_000;
/** A server that does not hold a long poll is not asked more often than this. */
const POLL_MS_MIN = 500;

export const isDone = ({ status }: RolloutReply): boolean => status !== "queued" && status !== "running";

/** Resolves with the rollout when it has ended, however it did. */
export async function untilDone(
  api: Api,
  id: string,
  { signal, onLook = () => undefined }: { signal: AbortSignal; onLook?: (rollout: RolloutReply) => void },
): Promise<RolloutReply> {
  const wait = process.stderr.isTTY ? WATCHED_POLL_S : LONG_POLL_S;
  for (;;) {
    const askedMs = performance.now();
    const options = { query: { wait }, signal, timeoutMs: wait * 1_000 + ANSWER_MS };
    const rollout = await api.get(`/v1/rollouts/${encodeURIComponent(id)}`, RolloutReply, options);
    onLook(rollout);
    if (isDone(rollout)) return rollout;
    const restMs = POLL_MS_MIN - (performance.now() - askedMs);
    if (restMs > 0) await delay(restMs, undefined, { signal });
  }
}

/** What a bar says beside its number. */
export function stateText({ status, queue_position, expected_start_s = null }: RolloutReply): string {
  if (queue_position === null) return status;
  const begins = expected_start_s === null ? "" : `, begins in about ${expected_start_s} s`;
  return `${status}, ${queue_position} in line${begins}`;
}

export function exitCodeOf(rollouts: readonly RolloutReply[]): ExitCode {
  return rollouts.every(({ status }) => status === "succeeded") ? EXIT.done : EXIT.someFailed;
}
