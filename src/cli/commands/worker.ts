/** `dream-engine worker`: one inference worker in this process. */
import type { Command } from "commander";

import { defaultModelOf, loadManifests } from "#platform/bundles.ts";
import { readConfig } from "#platform/config.ts";

import { UserError } from "../user-error.ts";
import { workerEnv } from "../worker-access.ts";

export function addWorker(program: Command): void {
  program
    .command("worker")
    .description("run one inference worker (needs REDIS_URL, or DATABASE_URL of a role that sees the queue alone)")
    .option("--model <slug>", "the model it serves; default: DEFAULT_MODEL, else the flagship")
    .action(work);
}

async function work({ model: wanted }: { model?: string }): Promise<void> {
  const config = readConfig(process.env);
  if (config.REDIS_URL === undefined && config.DATABASE_URL === undefined) {
    throw new UserError(
      "A worker takes its jobs from a queue: set REDIS_URL, or DATABASE_URL when the queue is there.",
    );
  }
  const { slug } = defaultModelOf(await loadManifests(config.MODELS_DIR), wanted ?? config.DEFAULT_MODEL);
  Object.assign(process.env, workerEnv(config, slug, config.DATABASE_URL ?? null));
  await import("#workers/inference/main.ts");
  // The worker's program listens to signals and ends this process by itself; until then the command is not over.
  await new Promise<never>(() => undefined);
}
