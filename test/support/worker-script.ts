/** The test's end of scripted-worker.ts: every process that connects, by its id. */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export type Order =
  | { readonly kind: "ready" }
  /** `untold`: its fleet has not heard of it yet. */
  | { readonly kind: "jobs" | "jobs untold"; readonly count: number }
  | { readonly kind: "die"; readonly code: number };

/** What a worker says after each order, and when its fleet told it to drain. */
export const DONE = "done";
export const TOLD_TO_DRAIN = "draining";

export interface WorkerScript {
  /** For the environment of the workers. */
  readonly path: string;
  readonly isDraining: (pid: number) => boolean;
  /** Resolves when it is done, or the worker gone. Nothing where it has not connected yet, a moment after its start. */
  order(pid: number, order: Order): Promise<void>;
  stop(): Promise<void>;
}

interface Worker {
  readonly socket: Socket;
  draining: boolean;
  /** Who waits for its orders to be done, in order. */
  waiting: (() => void)[];
}

export async function openWorkerScript(): Promise<WorkerScript> {
  const folder = await mkdtemp(join(tmpdir(), "dream-script-"));
  const path = join(folder, "control");
  const workers = new Map<number, Worker>();
  const server = createServer((socket) => {
    const worker: Worker = { socket, draining: false, waiting: [] };
    let pid: number | null = null;
    const lines = createInterface({ input: socket });
    // One that is killed says nothing more; `close` follows.
    lines.on("error", () => undefined);
    socket.on("error", () => undefined);
    socket.on("close", () => {
      if (pid !== null) workers.delete(pid);
      for (const done of worker.waiting.splice(0)) done();
    });
    lines.on("line", (line) => {
      if (line === DONE) worker.waiting.shift()?.();
      else if (line === TOLD_TO_DRAIN) worker.draining = true;
      else workers.set((pid = Number(line)), worker);
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    path,
    isDraining: (pid) => workers.get(pid)?.draining ?? false,
    order(pid, order) {
      const worker = workers.get(pid);
      if (worker === undefined) return Promise.resolve();
      return new Promise((resolve) => {
        worker.waiting.push(resolve);
        worker.socket.write(`${JSON.stringify(order)}\n`);
      });
    },
    async stop() {
      for (const { socket } of workers.values()) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      await rm(folder, { recursive: true, force: true });
    },
  };
}
