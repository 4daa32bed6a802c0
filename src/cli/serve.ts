/** The embedded system in a terminal: progress while it starts, a few lines when it is ready, Ctrl-C to end it. */
import { readConfig } from "#platform/config.ts";
import { untilToldToStop } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";

import { createSteps } from "./steps.ts";
import { startSystem, type System, untilWarm } from "./system.ts";

export async function serve(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("serve", config.LOG_LEVEL);
  const told = untilToldToStop();
  const steps = createSteps();
  const system = await startSystem(config, log, steps);
  const stopWaiting = new AbortController();
  const warm = untilWarm(system, stopWaiting.signal);
  const first = await Promise.race([told, warm]);
  if (typeof first === "boolean") {
    if (first) steps.done("models are warm");
    console.log(welcome(system, config.AUTH));
  }
  const reason = await Promise.race([told, system.failed]);
  stopWaiting.abort();
  log.info({ reason }, "stopping");
  await system.stop();
  if (reason instanceof Error) throw reason;
}

function welcome({ url, manifests, fleet }: System, auth: "on" | "off"): string {
  const models = manifests.map(({ slug }) => {
    if (fleet === null) return slug;
    const problem = fleet.crashLoop(slug);
    return `${slug} (${problem === null ? fleet.state(slug) : `its worker keeps dying: ${problem}`})`;
  });
  const key =
    auth === "off"
      ? "not needed (AUTH=off): requests without one are customer cus_local"
      : "npm run --silent dream-engine -- keys create --customer you@example.com --initial-credits 25.00";
  return [
    "",
    "Dream Engine is ready.",
    "",
    `  Base URL   ${url}`,
    `  Models     ${models.join(", ")}`,
    `  API docs   ${url}/docs`,
    `  Dashboard  ${url}/dashboard`,
    `  A key      ${key}`,
    "  Stop       Ctrl-C",
    "",
  ].join("\n");
}
