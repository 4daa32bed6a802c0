/** The systems that are compared: started on the same cores, asked in their own way, stopped with all they started. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { freePort } from "#cli/ports.ts";
import { settlesWithin } from "#platform/bounded.ts";
import { errorCode } from "#platform/error-code.ts";
import { ensureRedis } from "#test/support/redis-server.ts";

import { startServedSystem } from "../served-system.ts";
import { type Cores, onSystemCores } from "./affinity.ts";
import { formRequestOf, type HttpRequest, jsonBodyOf, jsonRequest, post, type Workload } from "./requests.ts";

const READY_TIMEOUT_MS = 180_000;
const READY_LOOK_MS = 500;
/** Ray takes some seconds to end its own daemons. */
const STOP_TIMEOUT_MS = 20_000;
const KILL_TIMEOUT_MS = 5_000;
/** onnxruntime's threads for one operator, in every system: what workers/inference/engine/onnx.ts uses. */
export const INTRA_OP_THREADS = 1;

/** Graphs are warm after the first, connections after the second. */
const WARM_REQUESTS = 2;

export interface Running {
  /** Answers of each of its processes until it is as fast as it will be. */
  readonly warmRequests: number;
  /** The mp4 of the request of this number. */
  dream(number: number): Promise<Buffer>;
  stop(): Promise<void>;
}

export interface Setting {
  readonly python: string;
  readonly ffmpegPath: string;
  readonly bundleDir: string;
  readonly cores: Cores;
  readonly workload: Workload;
}

/** What of a peer is tuned. */
export interface Tuning {
  readonly batch: number;
  /** How long a batch waits for more; null where the peer decides that itself. */
  readonly waitMs: number | null;
}

interface Peer {
  readonly name: string;
  readonly warmRequests: number;
  readonly waits: boolean;
  readonly command: (port: number) => readonly string[];
  readonly request: (body: Record<string, unknown>) => HttpRequest;
  readonly video: (answer: Buffer) => Buffer;
}

export const PEERS: readonly Peer[] = [
  {
    name: "LitServe",
    warmRequests: WARM_REQUESTS,
    waits: true,
    command: () => ["-m", "bench.peers.serve_litserve"],
    request: (body) => jsonRequest("/predict", body),
    video: (answer) => answer,
  },
  {
    name: "Ray Serve",
    warmRequests: WARM_REQUESTS,
    waits: true,
    command: () => ["-m", "bench.peers.serve_ray"],
    request: (body) => jsonRequest("/predict", body),
    video: (answer) => answer,
  },
  {
    name: "BentoML",
    warmRequests: 16, // its dispatcher learns from its first eleven batches, one to three requests each
    waits: false,
    command: (port) => ["-m", "bentoml", "serve", "bench.peers.serve_bentoml:Rollouts", "--port", String(port)],
    request: (body) => jsonRequest("/predict", { rollouts: [body] }),
    video: (answer) => Buffer.from((JSON.parse(answer.toString()) as [string])[0], "base64"),
  },
];

/** Resolves when it has answered one request. */
export async function startPeer(peer: Peer, tuning: Tuning, setting: Setting): Promise<Running> {
  // Short: Ray puts sockets below it, and the path of one may have 107 bytes.
  const dir = await mkdtemp(join(tmpdir(), "peer-"));
  const port = await freePort();
  const logFile = join(dir, "log");
  const log = openSync(logFile, "w");
  const child = await onSystemCores(setting.cores, () => {
    const env = { ...pythonEnv(setting), ...peerEnv(setting, tuning, port, dir) };
    // A group of its own, so that what it leaves behind can be ended with it.
    return Promise.resolve(
      spawn(setting.python, peer.command(port), { env, detached: true, stdio: ["ignore", log, log] }),
    );
  });
  const killAtExit = (): void => killGroup(child);
  process.once("exit", killAtExit);

  async function stop(): Promise<void> {
    const exited = child.exitCode === null && child.signalCode === null ? once(child, "exit") : Promise.resolve();
    child.kill("SIGTERM");
    await settlesWithin(STOP_TIMEOUT_MS, exited);
    killGroup(child);
    await settlesWithin(KILL_TIMEOUT_MS, exited);
    process.off("exit", killAtExit);
    await rm(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }

  const dream = async (number: number): Promise<Buffer> =>
    peer.video(await post(`http://127.0.0.1:${port}`, peer.request(jsonBodyOf(setting.workload, number))));
  try {
    await untilAnswers(child, () => dream(0));
  } catch (error) {
    const tail = (await readFile(logFile, "utf8")).slice(-4_000);
    await stop();
    throw new Error(`${peer.name} does not answer; its log ends with:\n${tail}`, { cause: error });
  }
  return { warmRequests: peer.warmRequests, dream, stop };
}

/** `dream-engine serve` as it ships: money, mp4, the queue on Redis, a worker a core. */
export async function startOurs(optimisations: string | null, setting: Setting): Promise<Running> {
  const { bundleDir, cores, workload, ffmpegPath } = setting;
  const { redis, system } = await onSystemCores(cores, async () => {
    const redis = await ensureRedis();
    const system = await startServedSystem(redis.url, {
      MODELS_DIR: resolve(bundleDir, ".."),
      DEFAULT_MODEL: workload.manifest.slug,
      WORKERS: String(cores.count),
      FFMPEG_PATH: ffmpegPath,
      ...(optimisations === null ? {} : { ENGINE_OPTIMISATIONS: optimisations }),
    }).catch(async (error: unknown) => {
      await redis.stop();
      throw error;
    });
    return { redis, system };
  });
  const running = {
    warmRequests: WARM_REQUESTS,
    dream: async (number: number) => post(system.url, await formRequestOf(workload, number, system.apiKey)),
    async stop() {
      await system.stop();
      await redis.stop();
    },
  };
  try {
    await running.dream(0);
  } catch (error) {
    await running.stop();
    throw error;
  }
  return running;
}

/** For every Python process: the repository's modules, one thread a process, the same ffmpeg as ours. */
export function pythonEnv({ bundleDir, ffmpegPath }: Setting): NodeJS.ProcessEnv {
  return {
    ...process.env,
    PYTHONPATH: resolve(import.meta.dirname, "../.."),
    PYTHONDONTWRITEBYTECODE: "1",
    OMP_NUM_THREADS: String(INTRA_OP_THREADS),
    PEER_THREADS: String(INTRA_OP_THREADS),
    PEER_BUNDLE: resolve(bundleDir),
    FFMPEG_PATH: ffmpegPath,
  };
}

function peerEnv({ cores }: Setting, { batch, waitMs }: Tuning, port: number, dir: string): NodeJS.ProcessEnv {
  return {
    PEER_PORT: String(port),
    PEER_DIR: dir,
    PEER_BATCH: String(batch),
    PEER_WAIT_S: String((waitMs ?? 0) / 1_000),
    PEER_PROCESSES: String(cores.count),
    // What the peers would tell their makers or keep in the home folder.
    RAY_USAGE_STATS_ENABLED: "0",
    BENTOML_DO_NOT_TRACK: "True",
    BENTOML_HOME: join(dir, "bentoml"),
  };
}

async function untilAnswers(child: ChildProcess, ask: () => Promise<unknown>): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (;;) {
    try {
      await ask();
      return;
    } catch (error) {
      // Refused, or 503 and 404 while it loads.
      if (performance.now() > deadline || child.exitCode !== null) throw error;
    }
    await delay(READY_LOOK_MS);
  }
}

function killGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    if (errorCode(error) !== "ESRCH") throw error; // nothing is left of it
  }
}
