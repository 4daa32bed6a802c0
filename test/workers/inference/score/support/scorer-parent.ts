/** A process that has two files scored, for the test to kill meanwhile; it says its scorer's process id. */
import { createLog } from "#platform/log.ts";
import type { FilePair } from "#workers/inference/score/score-files.ts";
import { startScorer } from "#workers/inference/score/scorer.ts";

const scorer = startScorer({
  lpipsModel: "models/lpips/lpips-alex.json",
  log: createLog("scorer-parent", "silent"),
});
const pair = JSON.parse(process.argv[2] ?? "") as FilePair; // the test writes it
const scored = scorer.score(pair);
setImmediate(() => process.send?.(scorer.pid));
await scored;
