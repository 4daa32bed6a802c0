/**
 * A leader in a process of its own, to be frozen: leads, begins a fenced write of the rollout in ROLLOUT, and commits it
 * when it is told to. On its output, a line each: the epoch, what became of the write, why the leadership was lost.
 */
import { once } from "node:events";

import { createDatabase } from "#platform/database.ts";
import { createLog } from "#platform/log.ts";
import type { RolloutId } from "#contract/ids.ts";
import { markDispatched } from "#rollouts/dispatch.ts";
import { tryLead } from "#rollouts/leader.ts";

const { DATABASE_URL: url = "", ROLLOUT = "" } = process.env;
const db = createDatabase({ url, log: createLog("test", "silent") });
const leadership = await tryLead(db, "to be frozen");
if (!leadership) throw new Error("somebody else leads");
void leadership.lost.then(({ message }) => console.log(`lost ${message}`));

const written = db.transaction(async (tx) => {
  const marked = await markDispatched(tx, leadership.epoch, [ROLLOUT as RolloutId]); // the test made it
  console.log(`leads ${leadership.epoch} ${marked.length}`);
  await once(process.stdin, "data");
});
await written.then(
  () => console.log("committed"),
  () => console.log("rolled back"),
);
const late = await markDispatched(db, leadership.epoch, [ROLLOUT as RolloutId]);
console.log(`late ${late.length}`);
await leadership.resign();
await db.stop();
