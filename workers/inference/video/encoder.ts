/**
 * Starts ffmpeg from a small process of its own. Starting one from the worker itself would fork a process that holds a
 * model: its thread stands still while the tables of all that memory are copied, and then the engine stumbles over every
 * page of its weights, which the fork left write-protected (decision 75 has the figures). The frames do not take the
 * detour: ffmpeg reads them from a socket of the worker's.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { constants, mkdtempSync, rmSync } from "node:fs";
import { access } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Readable, pipeline } from "node:stream";
import { fileURLToPath } from "node:url";

import { settlesWithin } from "#platform/bounded.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import type { FfmpegOrder, FromEncoder, ToEncoder } from "./encoder-process.ts";

const ENTRY = fileURLToPath(new URL("encoder-process.ts", import.meta.url));
/** It has nothing to finish. */
const EXIT_TIMEOUT_MS = 5_000;

export type VideoOrder = Omit<FfmpegOrder, "ffmpegPath" | "input">;

export interface Encoder extends Service {
  /**
   * Has ffmpeg read `frames` to their end, and resolves when the file is complete. Rejects with what ffmpeg said or with
   * the end of the encoder process; when the signal is aborted, ffmpeg is killed first.
   */
  encode(order: VideoOrder, frames: Readable, signal: AbortSignal): Promise<void>;
  /** Of the process; it is replaced when it dies. */
  readonly pid: number | undefined;
}

interface Running {
  readonly child: ChildProcess;
  /** Short: the path of a socket has a little over 100 bytes. */
  readonly socketDir: string;
  readonly answers: Map<number, (error: string | null) => void>;
}

export function startEncoder({ ffmpegPath, log }: { readonly ffmpegPath: string; readonly log: Log }): Encoder {
  let stopped = false;
  let orders = 0;
  let running: Running | null = start();

  function start(): Running {
    const socketDir = mkdtempSync(join(tmpdir(), "dream-"));
    // Of this environment it needs what a program needs to be found and loaded; some of the rest is secret.
    const env = pick(process.env, ["PATH", "LD_LIBRARY_PATH", "TMPDIR"]);
    const child = fork(ENTRY, [socketDir], { env, execArgv: [], stdio: ["ignore", "ignore", "inherit", "ipc"] });
    const own: Running = { child, socketDir, answers: new Map() };
    const over = (cause: string): void => {
      if (running === own) running = null;
      rmSync(socketDir, { recursive: true, force: true });
      if (!stopped) log.warn({ cause }, "the encoder process died; the next video starts another");
      for (const answer of own.answers.values()) answer(`the encoder process ended (${cause})`);
    };
    child.once("error", (error) => over(error.message));
    child.once("exit", (code, signal) => over(signal === null ? `exit code ${code}` : `signal ${signal}`));
    child.on("message", ({ id, error }: FromEncoder) => own.answers.get(id)?.(error)); // it sends nothing else
    return own;
  }

  async function encode(order: VideoOrder, frames: Readable, signal: AbortSignal): Promise<void> {
    if (stopped) throw new Error("the encoder was stopped");
    // In the other process fluent-ffmpeg would throw outside of any promise.
    await access(ffmpegPath, constants.X_OK);
    const { child, socketDir, answers } = (running ??= start());
    const id = orders++;
    const { promise: answered, resolve } = Promise.withResolvers<string | null>();
    answers.set(id, resolve);
    // A child that is gone says so by its exit.
    const tell = (message: ToEncoder) => void (child.connected && child.send(message, () => undefined));
    const kill = () => tell({ kind: "kill", id });
    let server: Server | undefined;
    try {
      const path = join(socketDir, String(id));
      server = await serveOnce(path, frames);
      tell({ kind: "encode", id, order: { ...order, ffmpegPath, input: `unix:${path}` } });
      signal.addEventListener("abort", kill);
      if (signal.aborted) kill();
      const error = await answered;
      if (error !== null) throw new Error(error);
    } finally {
      signal.removeEventListener("abort", kill);
      answers.delete(id);
      server?.close();
    }
  }

  return {
    encode,

    get pid() {
      return running?.child.pid;
    },

    async stop() {
      stopped = true;
      const child = running?.child;
      if (!child) return;
      const exited = child.exitCode === null && child.signalCode === null ? once(child, "exit") : Promise.resolve();
      if (child.connected) child.disconnect();
      if (!(await settlesWithin(EXIT_TIMEOUT_MS, exited))) child.kill("SIGKILL");
    },
  };
}

/** Listens for one reader of `frames`. */
async function serveOnce(path: string, frames: Readable): Promise<Server> {
  const server = createServer((reader) => {
    server.close();
    // Where it breaks off, ffmpeg ended or was given up: its own end tells. It may do so when it has all frames, too.
    reader.on("error", () => undefined);
    pipeline(frames, reader, () => undefined);
  });
  server.listen(path);
  await once(server, "listening");
  server.on("error", () => server.close()); // it could not accept: ffmpeg is turned away, and says so
  return server;
}

const pick = (from: NodeJS.ProcessEnv, names: readonly string[]): NodeJS.ProcessEnv =>
  Object.fromEntries(names.map((name) => [name, from[name]]));
