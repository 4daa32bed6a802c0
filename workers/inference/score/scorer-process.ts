/**
 * Entry of the scoring process: scores the pairs of files that its parent sends, one at a time, until the parent ends
 * it or is gone. The first message is what it works with (scorer.ts sends these).
 */
import { strict as assert } from "node:assert";
import { constants, setPriority } from "node:os";

import { createLpips, type Lpips } from "./lpips.ts";
import { type FilePair, scoreFiles } from "./score-files.ts";
import type { VideoScore } from "./score-videos.ts";

export interface ScorerOrders {
  readonly lpipsModel: string;
  readonly pair: FilePair;
}

export type ScorerAnswer =
  | { readonly kind: "scored"; readonly score: VideoScore }
  | { readonly kind: "failed"; readonly message: string };

assert(process.connected, "this is the entry of a child process with an IPC channel");
// Before the first graph is opened. Nobody waits for a score as long as somebody waits for a frame.
setPriority(constants.priority.PRIORITY_LOW);

const opened = new Map<string, Lpips>();

function lpipsOf(model: string): Lpips {
  const lpips = opened.get(model) ?? createLpips({ model, providers: ["cpu"] });
  opened.set(model, lpips);
  return lpips;
}

async function answer({ lpipsModel, pair }: ScorerOrders): Promise<ScorerAnswer> {
  try {
    return { kind: "scored", score: await scoreFiles(pair, lpipsOf(lpipsModel)) };
  } catch (error) {
    return { kind: "failed", message: error instanceof Error ? error.message : String(error) };
  }
}

process.on("message", (orders: ScorerOrders) => {
  void answer(orders).then((answered) => process.send?.(answered));
});
// SIGKILL, as everywhere where ONNX sessions are open: an ordinary exit runs their destructors.
process.once("disconnect", () => process.kill(process.pid, "SIGKILL"));
// Ctrl-C in a terminal reaches the whole process group; it is the parent who says when to stop.
for (const signal of ["SIGINT", "SIGHUP"] as const) process.on(signal, () => undefined);
