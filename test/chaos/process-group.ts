/**
 * The separate-deployment topology as real processes: one gateway, one scheduler, one settlement worker and two
 * inference workers, each restarted when it dies, as Kubernetes or systemd would. Tests kill them with SIGKILL.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, type WriteStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

export const ROLES = ["gateway", "scheduler", "settlement", "worker-a", "worker-b"] as const;
export type Role = (typeof ROLES)[number];

export interface ProcessGroup {
  readonly baseUrl: string;
  /** SIGKILLs the role's process now; it starts again shortly after. False when it was just down. */
  kill(role: Role): boolean;
  readonly kills: ReadonlyMap<Role, number>;
  stop(): Promise<void>;
}

/** Time between a process's death and its replacement. */
const RESTART_DELAY_MS = 200;
const STOP_TIMEOUT_MS = 15_000;
const READY_TIMEOUT_MS = 60_000;

export async function startProcessGroup(options: {
  readonly env: Readonly<Record<string, string>>;
  readonly port: number;
  readonly model: string;
  readonly logFile: string;
  /** All of them unless told. */
  readonly roles?: readonly Role[];
}): Promise<ProcessGroup> {
  const { roles = ROLES } = options;
  const baseUrl = `http://127.0.0.1:${options.port}`;
  const log = createWriteStream(options.logFile, { flags: "a" });
  const running = new Map<Role, ChildProcess>();
  const kills = new Map<Role, number>();
  let stopping = false;

  const start = (role: Role): void => {
    const command = role.startsWith("worker") ? ["worker", "--model", options.model] : [role];
    const child = spawn(process.execPath, ["src/cli/main.ts", ...command], {
      env: { ...options.env, PATH: process.env["PATH"], PORT: String(options.port), WORKERS: "0" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    pipeLines(child, role, log);
    running.set(role, child);
    child.once("exit", () => {
      if (running.get(role) === child) running.delete(role);
      if (!stopping) void delay(RESTART_DELAY_MS).then(() => (stopping ? undefined : start(role)));
    });
  };
  for (const role of roles) start(role);
  await untilReady(baseUrl);

  return {
    baseUrl,
    kills,
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
