/** A finished rollout's videos as files. */
import { patiently } from "../api/client.ts";
import { download, openLink } from "../api/download.ts";
import type { RolloutReply } from "../api/replies.ts";
import type { Customer } from "../customer-options.ts";
import { visible } from "../output.ts";
import { UserError } from "../user-error.ts";

/** One file, or one per candidate: `out.mp4` becomes `out_000.mp4`, `out_001.mp4` … */
export async function saveVideos(
  { patienceMs }: Pick<Customer, "patienceMs">,
  rollout: RolloutReply,
  out: string,
  signal: AbortSignal,
): Promise<string[]> {
  const { id, status, video_urls } = rollout;
  if (video_urls.length === 0) {
    const why = status === "succeeded" ? "its video is not stored any more" : `it is ${status}${errorText(rollout)}`;
    throw new UserError(`${id} has no video to save: ${why}.`);
  }
  const files: string[] = [];
  for (const [candidate, url] of video_urls.entries()) {
    const file = video_urls.length === 1 ? out : numbered(out, candidate);
    await patiently({ repeatable: true, patienceMs, onRetry: () => undefined, signal }, () =>
      download({ open: openLink(url), file, bytes: null, version: `${id}-${candidate}`, signal }),
    );
    files.push(file);
  }
  return files;
}

export function errorText({ error }: RolloutReply): string {
  return error === null ? "" : visible(` (${error.code}: ${error.message})`);
}

function numbered(out: string, candidate: number): string {
  const suffix = `_${String(candidate).padStart(3, "0")}`;
  return /\.[^./]+$/.test(out) ? out.replace(/(\.[^./]+)$/, `${suffix}$1`) : `${out}${suffix}`;
}
