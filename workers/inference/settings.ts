/** What this process reads from the environment beside the table in platform/config.ts. */
import { OPTIMISATION_NAMES, type OptimisationName } from "#contract/manifest.ts";
import { ConfigError } from "#platform/config.ts";

/** One run of one graph; a large model's step on a slow accelerator takes seconds. */
const RUN_TIMEOUT_DEFAULT_MS = 60_000;

export interface WorkerSettings {
  /** Slug of the one bundle that this process serves. */
  readonly model: string;
  readonly runTimeoutMs: number;
  /** Undefined: all that the bundle has. */
  readonly optimisations: readonly OptimisationName[] | undefined;
}

export function readWorkerSettings(env: NodeJS.ProcessEnv): WorkerSettings {
  const { MODEL: model = "", ENGINE_RUN_TIMEOUT_MS: timeout = "", ENGINE_OPTIMISATIONS: optimisations = "" } = env;
  if (model === "") throw new ConfigError("MODEL: expected the slug of the model to serve, got nothing");
  const runTimeoutMs = timeout === "" ? RUN_TIMEOUT_DEFAULT_MS : Number(timeout);
  if (!Number.isSafeInteger(runTimeoutMs) || runTimeoutMs < 100) {
    throw new ConfigError(`ENGINE_RUN_TIMEOUT_MS: expected milliseconds, at least 100, got ${JSON.stringify(timeout)}`);
  }
  return { model, runTimeoutMs, optimisations: readOptimisations(optimisations) };
}

function readOptimisations(text: string): readonly OptimisationName[] | undefined {
  if (text === "") return undefined;
  if (text === "none") return [];
  const names = text.split(",").map((name) => name.trim());
  const known = OPTIMISATION_NAMES.filter((name) => names.includes(name));
  if (known.length !== names.length) {
    const expected = `none, or a comma-separated list of ${OPTIMISATION_NAMES.join(", ")}`;
    throw new ConfigError(`ENGINE_OPTIMISATIONS: expected ${expected}, got ${JSON.stringify(text)}`);
  }
  return known;
}
