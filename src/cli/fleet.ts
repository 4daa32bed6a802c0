/** Who runs the inference workers, as FLEET, WORKERS, WORKERS_MIN and SCALEDOWN_S say. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import type { Clock } from "#platform/clock.ts";
import { type Config, ConfigError } from "#platform/config.ts";
import type { Log } from "#platform/log.ts";
import { type LocalFleet, startLocalFleet } from "#scheduler/scaling/fleet/local.ts";
import type { ScalingSetup } from "#scheduler/scaling/scaler.ts";

import { workerEnv } from "./worker-access.ts";

/** The program of an inference worker, as the fleet starts it. */
const WORKER_ENTRY = fileURLToPath(import.meta.resolve("#workers/inference/main.ts"));

/** Throws ConfigError where they contradict each other. */
export function limitsOf({ WORKERS: maximum, WORKERS_MIN: minimum, SCALEDOWN_S }: Config): ScalingSetup["limits"] {
  if (minimum > maximum) {
    throw new ConfigError(`WORKERS_MIN: expected at most WORKERS, which is ${maximum}, got ${minimum}`);
  }
  return { minimum, maximum, scaledown_s: SCALEDOWN_S };
}

/** A fleet that may not have a single worker would leave every request waiting. */
export function requireWorkers(fleet: "local" | "kubernetes", { WORKERS }: Config): void {
  if (WORKERS === 0) throw new ConfigError(`WORKERS: expected at least 1 with FLEET=${fleet}, got 0`);
}

export interface LocalOptions {
  readonly config: Config;
  readonly models: readonly string[];
  /** Workers of each model to start at once, whoever leads. */
  readonly initial: number;
  /** For a queue in PostgreSQL: a database URL of a role that sees the queue alone. */
  readonly queueUrl: string | null;
  readonly clock: Clock;
  readonly log: Log;
}

export function startOwnWorkers({ config, models, initial, queueUrl, clock, log }: LocalOptions): Promise<LocalFleet> {
  requireWorkers("local", config);
  return startLocalFleet({
    models,
    initial: Math.min(initial, config.WORKERS),
    entry: WORKER_ENTRY,
    envOf: (model) => workerEnv(config, model, queueUrl),
    noteFolder: join(config.DATA_DIR, "workers"),
    clock,
    log,
  });
}
