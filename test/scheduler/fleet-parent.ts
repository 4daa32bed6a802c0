/** A process with a fleet of one, for the test to kill. */
import { createLog } from "#platform/log.ts";
import { systemClock } from "#platform/clock.ts";
import { startLocalFleet } from "#scheduler/scaling/fleet/local.ts";

const [noteFolder = "", entry = "", mode = ""] = process.argv.slice(2);
const fleet = await startLocalFleet({
  models: ["m"],
  initial: 1,
  entry,
  envOf: () => ({ MODE: mode }),
  noteFolder,
  clock: systemClock,
  log: createLog("fleet-parent", "silent"),
  onChange: () => {
    if (fleet?.state("m") === "warm") process.send?.({ pids: fleet.pids("m") });
  },
});
