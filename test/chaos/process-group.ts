/**
 * The separate-deployment topology as real processes: one gateway, one scheduler, one settlement worker and two
 * inference workers, and where they are asked for a runner of datasets and workers without a model; each restarted when
 * it dies, as Kubernetes or systemd would. Tests kill them with SIGKILL.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, type WriteStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

import type { StandInKind } from "./stand-in-worker.ts";

export const ROLES = ["gateway", "scheduler", "settlement", "worker-a", "worker-b"] as const;
/** `instant-…`: the program of stand-in-worker.ts, with the engine that `standIn` names. */
export type Role = (typeof ROLES)[number] | "runner" | "instant-a" | "instant-b";

export interface ProcessGroup {
  readonly baseUrl: string;
  /** SIGKILLs the role's process now; it starts again shortly after. False when it was just down. */
  kill(role: Role): boolean;
  readonly kills: ReadonlyMap<Role, number>;
  /** Whether the role's process says that it runs; it may have been started long before. */
  isUp(role: Role): boolean;
  /** Until the gateway takes calls, for instance because it was killed a moment ago. */
  untilReady(): Promise<void>;
  /** Process ids by role, of those that were started. */
  pids(): ReadonlyMap<Role, number>;
  stop(): Promise<void>;
}

/** Time between a process's death and its replacement. */
const RESTART_DELAY_MS = 200;
const STOP_TIMEOUT_MS = 15_000;
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
  const { roles = ROLES, standIn = "black" } = options;
  const baseUrl = `http://127.0.0.1:${options.port}`;
  const log = createWriteStream(options.logFile, { flags: "a" });
  const running = new Map<Role, ChildProcess>();
  const kills = new Map<Role, number>();
  const up = new Set<Role>();
  let stopping = false;

  const start = (role: Role): void => {
    const child = spawn(process.execPath, commandOf(role, options.model, standIn), {
      env: {
        ...options.env,
        ...options.envOf?.(role),
        PATH: process.env["PATH"],
        NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
        PORT: String(options.port),
        WORKERS: "0",
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    pipeLines(child, role, log);
    up.delete(role);
    // Of `runRole` and of stand-in-worker.ts; short lines, which come whole.
    child.stderr?.on("data", (chunk: Buffer) => chunk.includes('"msg":"running"') && up.add(role));
    running.set(role, child);
    child.once("exit", () => {
      if (running.get(role) === child) running.delete(role);
      up.delete(role);
      if (!stopping) void delay(RESTART_DELAY_MS).then(() => (stopping ? undefined : start(role)));
    });
  };
  for (const role of roles) start(role);
  await untilReady(baseUrl);

  return {
    baseUrl,
    kills,
    isUp: (role) => up.has(role),
    untilReady: () => untilReady(baseUrl),
    pids: () => new Map([...running].flatMap(([role, { pid }]) => (pid === undefined ? [] : [[role, pid]]))),
    kill(role) {
      const killed = running.get(role)?.kill("SIGKILL") ?? false;
      if (killed) kills.set(role, (kills.get(role) ?? 0) + 1);
      return killed;
    },
    async stop() {
      stopping = true;
      await Promise.all(
        [...running.values()].map(async (child) => {
          const exited = new Promise((resolve) => child.once("exit", resolve));
          child.kill("SIGTERM");
          if ((await Promise.race([exited, delay(STOP_TIMEOUT_MS, "late")])) === "late") child.kill("SIGKILL");
        }),
      );
      log.end();
    },
  };
}

function commandOf(role: Role, model: string, standIn: StandInKind): string[] {
  if (role.startsWith("instant")) return ["test/chaos/stand-in-worker.ts", model, standIn];
  return ["src/cli/main.ts", ...(role.startsWith("worker") ? ["worker", "--model", model] : [role])];
}

function pipeLines(child: ChildProcess, role: Role, log: WriteStream): void {
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk: Buffer) => log.write(`[${role} ${child.pid}] ${chunk.toString()}`));
  }
}

async function untilReady(baseUrl: string): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS;
  while (Date.now() < deadline) {
    const ready = await fetch(`${baseUrl}/readyz`).then(
      (response) => response.ok,
      () => false, // not listening yet
    );
    if (ready) return;
    await delay(100);
  }
  throw new Error(`the gateway was not ready within ${READY_TIMEOUT_MS} ms; see the log file`);
}
