/** Processes of ours, each started again when it dies, as Kubernetes or systemd would. Tests kill and freeze them. */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

import type { Service } from "#platform/lifecycle.ts";

export interface ProcessSpec<Name extends string> {
  readonly name: Name;
  readonly argv: readonly string[];
  /** All that it gets beside PATH and where Node keeps compiled code. */
  readonly env: Readonly<Record<string, string>>;
}

export interface Supervisor<Name extends string> extends Service {
  /** SIGKILLs it now; it starts again shortly after. False when it was just down. */
  kill(name: Name): boolean;
  readonly kills: ReadonlyMap<Name, number>;
  /** Whether it says that it runs; it may have been started long before. */
  isUp(name: Name): boolean;
  /** Process ids of those that were started. */
  pids(): ReadonlyMap<Name, number>;
}

/** Time between a process's death and its replacement. */
const RESTART_DELAY_MS = 200;
const STOP_TIMEOUT_MS = 15_000;
const IS_UP = /"msg":"(running|ready)"/;

export function superviseProcesses<Name extends string>(
  specs: readonly ProcessSpec<Name>[],
  logFile: string,
): Supervisor<Name> {
  const log = createWriteStream(logFile, { flags: "a" });
  const running = new Map<Name, ChildProcess>();
  const kills = new Map<Name, number>();
  const up = new Set<Name>();
  let stopping = false;

  const start = (spec: ProcessSpec<Name>): void => {
    const { name, argv, env } = spec;
    const { PATH, NODE_COMPILE_CACHE } = process.env;
    const child = spawn(process.execPath, argv, {
      env: { ...env, PATH, NODE_COMPILE_CACHE },
      stdio: ["ignore", "pipe", "pipe"],
    });
    up.delete(name);
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (chunk: Buffer) => log.write(`[${name} ${child.pid}] ${chunk.toString()}`));
    }
    // Of `runRole` and of inference workers; short lines, which come whole.
    child.stderr.on("data", (chunk: Buffer) => IS_UP.test(chunk.toString()) && up.add(name));
    running.set(name, child);
    child.once("exit", () => {
      if (running.get(name) === child) running.delete(name);
      up.delete(name);
      if (!stopping) void delay(RESTART_DELAY_MS).then(() => (stopping ? undefined : start(spec)));
    });
  };
  for (const spec of specs) start(spec);

  return {
    kills,
    isUp: (name) => up.has(name),
    pids: () => new Map([...running].flatMap(([name, { pid }]) => (pid === undefined ? [] : [[name, pid]]))),
    kill(name) {
      const killed = running.get(name)?.kill("SIGKILL") ?? false;
      if (killed) kills.set(name, (kills.get(name) ?? 0) + 1);
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

/** Until the gateway takes calls, for instance because it was killed a moment ago. */
export async function untilGatewayReady(baseUrl: string, withinMs: number): Promise<void> {
  const deadline = Date.now() + withinMs;
  while (Date.now() < deadline) {
    const ready = await fetch(`${baseUrl}/readyz`).then(
      (response) => response.ok,
      () => false, // not listening yet
    );
    if (ready) return;
    await delay(100);
  }
  throw new Error(`the gateway was not ready within ${withinMs} ms; see the log file`);
}
