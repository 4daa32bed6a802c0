/**
 * The separate-deployment topology as real processes: one gateway, one scheduler, one settlement worker and two
 * inference workers, and where they are asked for a runner of datasets and workers without a model; each restarted when
 * it dies. Tests kill them with SIGKILL.
 */
import { type Supervisor, superviseProcesses, untilGatewayReady } from "../support/supervisor.ts";
import type { StandInKind } from "./stand-in-worker.ts";

export const ROLES = ["gateway", "scheduler", "settlement", "worker-a", "worker-b"] as const;
/** `instant-…`: the program of stand-in-worker.ts, with the engine that `standIn` names. */
export type Role = (typeof ROLES)[number] | "runner" | "instant-a" | "instant-b";

export interface ProcessGroup extends Supervisor<Role> {
  readonly baseUrl: string;
  /** Until the gateway takes calls, for instance because it was killed a moment ago. */
  untilReady(): Promise<void>;
}

const READY_TIMEOUT_MS = 60_000;

export async function startProcessGroup(options: {
  readonly env: Readonly<Record<string, string>>;
  /** For one role beside or instead of `env`. */
  readonly envOf?: (role: Role) => Readonly<Record<string, string>>;
  readonly port: number;
  readonly model: string;
  readonly logFile: string;
  /** All of them unless told. */
  readonly roles?: readonly Role[];
  readonly standIn?: StandInKind;
}): Promise<ProcessGroup> {
  const { roles = ROLES, standIn = "black", port, model } = options;
  const baseUrl = `http://127.0.0.1:${port}`;
  const specs = roles.map((role) => ({
    name: role,
    argv: commandOf(role, model, standIn),
    env: { ...options.env, ...options.envOf?.(role), PORT: String(port), WORKERS: "0" },
  }));
  const processes = superviseProcesses(specs, options.logFile);
  const untilReady = (): Promise<void> => untilGatewayReady(baseUrl, READY_TIMEOUT_MS);
  await untilReady();
  return { ...processes, baseUrl, untilReady };
}

function commandOf(role: Role, model: string, standIn: StandInKind): string[] {
  if (role.startsWith("instant")) return ["test/chaos/stand-in-worker.ts", model, standIn];
  return ["src/cli/main.ts", ...(role.startsWith("worker") ? ["worker", "--model", model] : [role])];
}
