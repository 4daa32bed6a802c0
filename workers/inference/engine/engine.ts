/**
 * The engine as the main thread sees it: one worker thread, requests in, frames out. A thread inside a graph cannot
 * be interrupted (ending it there aborts the process), so everything here is cooperative: cancelling and stopping
 * take effect between two runs, and a run that never ends is reported as a fault that only the end of the process
 * repairs.
 */
import { strict as assert } from "node:assert";
import { Worker } from "node:worker_threads";

import type { Manifest, OptimisationName } from "#contract/manifest.ts";
import type { Log } from "#platform/log.ts";
import { settlesWithin } from "#platform/bounded.ts";

import type { EngineStats } from "./counters.ts";
import type { EngineRequest } from "./loop.ts";
import { type FromThread, PULSE, type ThreadData, type ToThread } from "./messages.ts";
import { namesOf, type Specs, specsOf } from "./optimisations.ts";
import { NO_TELEMETRY } from "./onnx-telemetry.ts";
import type { EngineNews } from "./outbox.ts";
import type { SessionTuning } from "./session-tuning.ts";

/** Loading and warming: a bundle that takes longer than this will not come up. */
const LOAD_TIMEOUT_MS = 300_000;
/** How long a stop waits for the run in progress. */
const STOP_TIMEOUT_MS = 5_000;
/** After a fault the thread has ended already, or hangs and will not. */
const STOP_AFTER_FAULT_TIMEOUT_MS = 500;
/** The watchdog looks this often within its timeout. */
const LOOKS_PER_TIMEOUT = 8;

export type FaultCode = "engine_failed" | "engine_timeout";

/** The engine is beyond use: a graph threw, its thread ended, or a run did not. The process has to be replaced. */
export class EngineFault extends Error {
  override readonly name = "EngineFault";
  readonly code: FaultCode;

  constructor(code: FaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The engine has stopped, or was beyond use before the request reached it: no fault of the request. */
export class EngineUnavailable extends Error {
  override readonly name = "EngineUnavailable";
}

export interface EngineOptions {
  readonly bundleDir: string;
  readonly manifest: Manifest;
  readonly providers: readonly string[];
  /** Number of the device that cuda and tensorrt use; 0 unless given. */
  readonly device?: number;
  /** What differs from the default (session-tuning.ts). */
  readonly tuning?: Partial<SessionTuning>;
  /** As in `RowLimits`; unset: what warm-up finds, which depends on how busy the machine is. */
  readonly rowsWorth?: number;
  /** One run of one graph must end within this. */
  readonly runTimeoutMs: number;
  /** Those that rollouts are served with; unset: all that the bundle has. */
  readonly optimisations?: readonly OptimisationName[] | undefined;
  readonly log: Log;
}

type EngineResult = { readonly kind: "finished"; readonly engineWallMs: number } | { readonly kind: "cancelled" };

/**
 * `frames` (whole frames of one candidate, in order) is the receiver's to keep. The candidate's engine does not run
 * far ahead of the promise, if there is one: it resolves when the frames are dealt with, and never rejects.
 */
type OnFrames = (candidate: number, frames: Uint8Array) => void | Promise<void>;

interface Submission {
  /** Rejects with EngineFault or EngineUnavailable. */
  readonly done: Promise<EngineResult>;
  /** `done` resolves as cancelled at the next step, unless it finishes before. */
  cancel(): void;
}

export interface Engine {
  submit(request: EngineRequest, onFrames: OnFrames): Submission;
  readonly stats: EngineStats;
  /** Samples of a lane that are live at once, as found at warm-up; also the rows of a forward. */
  readonly samplesMax: number;
  readonly specs: Specs;
  /** Resolves, once, when the engine is beyond use. */
  readonly failed: Promise<EngineFault>;
  /** Ends the thread between two runs. False when it did not end in time: only SIGKILL of the process is safe then. */
  stop(): Promise<boolean>;
}

type ReadyMessage = Extract<FromThread, { type: "ready" }>;
type FramesNews = Extract<EngineNews, { type: "frames" }>;

interface InHand {
  readonly onFrames: OnFrames;
  readonly resolve: (result: EngineResult) => void;
  readonly reject: (error: EngineFault | EngineUnavailable) => void;
}

/**
 * Resolves when the bundle is loaded, checked and warm; rejects with what is wrong with it, and with
 * OptimisationMissing when it does not have what was asked for.
 */
export async function startEngine(options: EngineOptions): Promise<Engine> {
  const {
    bundleDir,
    manifest,
    providers,
    device = 0,
    tuning = {},
    rowsWorth: rowsWorthFixed,
    runTimeoutMs,
    log,
  } = options;
  const specs = specsOf(manifest, options.optimisations);
  const frameBytes = manifest.shapes.height * manifest.shapes.width * 3;
  const pulse = new Int32Array(new SharedArrayBuffer(Object.keys(PULSE).length * Int32Array.BYTES_PER_ELEMENT));
  Object.assign(process.env, NO_TELEMETRY); // here: what a thread sets in its environment reaches no native code
  const thread = new Worker(new URL("./thread.ts", import.meta.url), {
    name: "engine",
    workerData: { bundleDir, manifest, providers, device, tuning, rowsWorthFixed, specs, pulse } satisfies ThreadData,
  });
  const exited = new Promise<void>((resolve) => thread.once("exit", () => resolve()));
  const ready = await untilReady(thread);
  const { samplesMax, limitedBy } = ready.warmUp;
  const optimisations = { served: namesOf(specs.served), base: namesOf(specs.base) };
  log.info(
    {
      samples_max: samplesMax,
      rows_worth: rowsWorthFixed ?? ready.warmUp.rowsWorth,
      optimisations,
      fixed: specs.fixed,
    },
    "engine warm",
  );
  if (limitedBy) log.warn({ samples_max: samplesMax }, `fewer samples than the manifest allows: ${limitedBy}`);

  const inHand = new Map<string, InHand>();
  const state = { stats: ready.stats, stopping: false, fault: null as EngineFault | null };
  const failed = Promise.withResolvers<EngineFault>();

  function fail(fault: EngineFault): void {
    if (state.fault || state.stopping) return;
    log.error({ err: fault, requests: inHand.size }, "engine fault");
    state.fault = fault;
    clearInterval(watchdog);
    rejectAll(fault);
    failed.resolve(fault);
  }

  function rejectAll(error: EngineFault | EngineUnavailable): void {
    for (const { reject } of inHand.values()) reject(error);
    inHand.clear();
  }

  function onNews(news: EngineNews): void {
    const request = inHand.get(news.id);
    if (!request) return; // rejected by a fault before this arrived
    if (news.type === "frames") {
      void giveFrames(request, news);
      return;
    }
    inHand.delete(news.id);
    request.resolve(
      news.type === "finished" ? { kind: "finished", engineWallMs: news.engineWallMs } : { kind: "cancelled" },
    );
  }

  async function giveFrames(request: InHand, { id, candidate, pieces }: FramesNews): Promise<void> {
    await Promise.all(pieces.map(async (frames) => request.onFrames(candidate, frames)));
    const bytes = pieces.reduce((sum, { byteLength }) => sum + byteLength, 0);
    if (inHand.get(id) === request) post({ type: "taken", id, candidate, frames: bytes / frameBytes });
  }

  thread.on("message", (message: FromThread) => {
    state.stats = message.stats;
    if (message.type === "news") for (const news of message.news) onNews(news);
  });
  thread.on("error", (error) =>
    fail(new EngineFault("engine_failed", `the engine failed: ${messageOf(error)}`, { cause: error })),
  );
  thread.once("exit", (code) => fail(new EngineFault("engine_failed", `the engine thread ended with code ${code}`)));

  const watch = createHangWatch(runTimeoutMs, () => Atomics.load(pulse, PULSE.runs));
  const watchdog = setInterval(() => {
    if (watch.isHanging(Atomics.load(pulse, PULSE.busy) === 1, performance.now())) {
      fail(new EngineFault("engine_timeout", `no forward ended within ${runTimeoutMs} ms`));
    }
  }, runTimeoutMs / LOOKS_PER_TIMEOUT);

  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a worker thread has no origin
  const post = (message: ToThread): void => thread.postMessage(message);

  return {
    get stats() {
      return state.stats;
    },
    samplesMax,
    specs,
    failed: failed.promise,

    submit(request, onFrames) {
      const { promise, resolve, reject } = Promise.withResolvers<EngineResult>();
      const own: InHand = { onFrames, resolve, reject };
      if (state.fault || state.stopping) {
        reject(new EngineUnavailable("the engine has failed or stopped", { cause: state.fault }));
      } else {
        assert(!inHand.has(request.id), `${request.id} is in hand already`); // there it would end the thread, and all
        inHand.set(request.id, own);
        post({ type: "submit", request });
      }
      return {
        done: promise,
        cancel() {
          if (inHand.get(request.id) === own) post({ type: "cancel", id: request.id });
        },
      };
    },

    async stop() {
      state.stopping = true;
      clearInterval(watchdog);
      post({ type: "stop" });
      rejectAll(new EngineUnavailable("the engine was stopped"));
      return settlesWithin(state.fault ? STOP_AFTER_FAULT_TIMEOUT_MS : STOP_TIMEOUT_MS, exited);
    },
  };
}

/** Tells a run that does not end from an engine that has nothing to do. */
export function createHangWatch(timeoutMs: number, readPulse: () => number) {
  let pulse = readPulse();
  let aliveAt: number | null = null;
  return {
    /** To be asked regularly, with whether there is something to run and the time in ms. */
    isHanging(hasWork: boolean, now: number): boolean {
      const latest = readPulse();
      if (!hasWork || aliveAt === null || latest !== pulse) aliveAt = now;
      pulse = latest;
      return now - aliveAt >= timeoutMs;
    },
  };
}

/** The thread's first message says that it is ready; an error or an end before it is why it never will be. */
async function untilReady(thread: Worker): Promise<ReadyMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<ReadyMessage>();
  const onExit = (code: number) => reject(new Error(`the engine thread ended with code ${code} while loading`));
  const timer = setTimeout(
    () => reject(new Error(`the engine did not load in ${LOAD_TIMEOUT_MS} ms`)),
    LOAD_TIMEOUT_MS,
  );
  thread.once("message", (message: FromThread) => {
    if (message.type === "ready") resolve(message);
  });
  thread.once("error", reject);
  thread.once("exit", onExit);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    thread.off("error", reject);
    thread.off("exit", onExit);
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
