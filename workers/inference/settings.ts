/** What this process reads from the environment beside the table in platform/config.ts. */
import { OPTIMISATION_NAMES, type OptimisationName } from "#contract/manifest.ts";
import { ConfigError } from "#platform/config.ts";

/** One run of one graph; a large model's step on a slow accelerator takes seconds. */
const RUN_TIMEOUT_DEFAULT_MS = 60_000;
/** More than any machine has: what is beyond is a slip of the pen. */
const THREADS_MAX = 256;
const DEVICES_MAX = 64;
/** Most supervisors kill after 30 s; before that, what is not done has to be put back. */
const DRAIN_DEFAULT_S = 25;
const DRAIN_MAX_S = 3_600;

export interface WorkerSettings {
  /** Slug of the one bundle that this process serves. */
  readonly model: string;
  readonly runTimeoutMs: number;
  /** Undefined: all that the bundle has. */
  readonly optimisations: readonly OptimisationName[] | undefined;
  /** Of one operator; undefined: the default (engine/session-tuning.ts). */
  readonly threads: number | undefined;
  /** Number of the device that cuda and tensorrt use. */
  readonly device: number;
  /** Told to stop by whoever is not our own fleet: so long jobs in hand may go on, the rest is put back. */
  readonly drainMs: number;
}

export function readWorkerSettings(env: NodeJS.ProcessEnv): WorkerSettings {
  const { MODEL: model = "", ENGINE_RUN_TIMEOUT_MS: timeout = "", ENGINE_OPTIMISATIONS: optimisations = "" } = env;
  if (model === "") throw new ConfigError("MODEL: expected the slug of the model to serve, got nothing");
  const runTimeoutMs = timeout === "" ? RUN_TIMEOUT_DEFAULT_MS : Number(timeout);
  if (!Number.isSafeInteger(runTimeoutMs) || runTimeoutMs < 100) {
    throw new ConfigError(`ENGINE_RUN_TIMEOUT_MS: expected milliseconds, at least 100, got ${JSON.stringify(timeout)}`);
  }
  refuseTensorrtSettings(env);
  return {
    model,
    runTimeoutMs,
    optimisations: readOptimisations(optimisations),
    threads: readInteger(env, "ORT_THREADS", 1, THREADS_MAX),
    device: readInteger(env, "ORT_DEVICE", 0, DEVICES_MAX - 1) ?? 0,
    drainMs: (readInteger(env, "DRAIN_S", 0, DRAIN_MAX_S) ?? DRAIN_DEFAULT_S) * 1000,
  };
}

function readInteger(env: NodeJS.ProcessEnv, name: string, min: number, max: number): number | undefined {
  const { [name]: text = "" } = env;
  if (text === "") return undefined;
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= min && value <= max) return value;
  throw new ConfigError(`${name}: expected a number from ${min} to ${max}, got ${JSON.stringify(text)}`);
}

/** Somebody who sets them expects an engine cache or half precision and would get neither. */
function refuseTensorrtSettings(env: NodeJS.ProcessEnv): void {
  const [name] = Object.keys(env).filter((variable) => variable.startsWith("ORT_TENSORRT_"));
  if (name === undefined) return;
  throw new ConfigError(`${name}: ONNX Runtime's binding for Node does not heed TensorRT's settings (docs/gpu.md)`);
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
