/**
 * Scores videos in a process of its own, at the lowest priority: a scoring run blocks its thread, and must hold up
 * neither a forward nor the worker's main thread. The process starts at the first request, scores one at a time, and is
 * ended when it has had nothing to do for a while, when a request is called off, and with its parent. It holds
 * nothing that anybody needs, so it is always ended by SIGKILL; and when it dies by itself, the request that it had fails
 * and the next one starts another.
 */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { createSlots } from "#platform/slots.ts";

import { NO_TELEMETRY } from "../engine/onnx-telemetry.ts";
import type { FilePair } from "./score-files.ts";
import type { VideoScore } from "./score-videos.ts";
import type { ScorerAnswer, ScorerOrders } from "./scorer-process.ts";

/** It holds some 150 MB; starting it again takes a fraction of a second. */
const IDLE_MS = 60_000;
const ENTRY = fileURLToPath(new URL("scorer-process.ts", import.meta.url));

/** No score, for a reason that is in the message. The request may be tried again. */
export class ScorerFailed extends Error {
  override readonly name = "ScorerFailed";
}

export interface ScorerOptions {
  /** The LPIPS graph's description: `models/lpips/lpips-alex.json`. */
  readonly lpipsModel: string;
  readonly log: Log;
  readonly idleMs?: number;
}

export interface Scorer extends Service {
  /**
   * Waits for its turn, then for the score. Rejects ScorerFailed, also for what cannot be compared; or the signal's
   * reason, at once.
   */
  score(pair: FilePair, signal?: AbortSignal): Promise<VideoScore>;
  /** The process that runs, if one does. */
  readonly pid: number | undefined;
}

interface Running {
  readonly child: ChildProcess;
  readonly exited: Promise<string>;
}

export function startScorer({ lpipsModel, log, idleMs = IDLE_MS }: ScorerOptions): Scorer {
  const turns = createSlots(1);
  const stopping = new AbortController();
  let running: Running | null = null;
  let idle: NodeJS.Timeout | undefined;

  function start(): Running {
    // It needs nothing of this environment, and some of it is secret.
    const child = fork(ENTRY, [], { env: NO_TELEMETRY, execArgv: [], stdio: ["ignore", "ignore", "inherit", "ipc"] });
    const { promise: exited, resolve } = Promise.withResolvers<string>();
    const over = (cause: string): void => {
      if (running?.child === child) {
        running = null;
        log.warn({ cause }, "the scorer died; the next request starts another");
      }
      resolve(cause);
    };
    child.once("error", (error) => over(`could not start: ${error.message}`));
    child.once("exit", (code, signal) => over(signal === null ? `exit code ${code}` : `signal ${signal}`));
    running = { child, exited };
    log.debug({ pid: child.pid }, "scorer started");
    return running;
  }

  async function end(): Promise<void> {
    const ended = running;
    running = null;
    ended?.child.kill("SIGKILL");
    await ended?.exited;
  }

  async function ask(pair: FilePair, { child, exited }: Running): Promise<VideoScore> {
    const { promise: answered, resolve } = Promise.withResolvers<ScorerAnswer>();
    child.once("message", (answer: ScorerAnswer) => resolve(answer)); // scorer-process.ts sends nothing else
    // A child that is gone already says so by its exit.
    child.send({ lpipsModel, pair } satisfies ScorerOrders, () => undefined);
    const died = exited.then((cause) => ({ kind: "failed", message: `the scoring process ended (${cause})` }) as const);
    const answer = await Promise.race([answered, died]);
    if (answer.kind === "failed") throw new ScorerFailed(answer.message);
    return answer.score;
  }

  async function scoreInTurn(pair: FilePair, signal: AbortSignal): Promise<VideoScore> {
    const giveBack = await turns.take();
    try {
      signal.throwIfAborted();
      clearTimeout(idle);
      try {
        return await unlessAborted(ask(pair, running ?? start()), signal);
      } finally {
        if (signal.aborted) await end();
        else idle = setTimeout(() => void end(), idleMs).unref();
      }
    } finally {
      giveBack();
    }
  }

  return {
    get pid() {
      return running?.child.pid;
    },

    score(pair, signal) {
      const either = AbortSignal.any(signal ? [stopping.signal, signal] : [stopping.signal]);
      return unlessAborted(scoreInTurn(pair, either), either);
    },

    async stop() {
      stopping.abort(new ScorerFailed("the scorer was stopped"));
      clearTimeout(idle);
      const giveBack = await turns.take();
      await end();
      giveBack();
    },
  };
}

/** As `work`, but rejects with the signal's reason as soon as it comes. `work` may still settle; nobody hears it then. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
