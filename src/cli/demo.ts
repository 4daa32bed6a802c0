/**
 * `npm run demo`: from nothing to a dreamed video. Uses the server that runs on DATA_DIR, else starts one for the
 * moment; mints a key with a little credit; dreams the bundle's example through HTTP as a customer would; says what it
 * cost. Leaves `rollout.mp4` and nothing that runs.
 */
import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";

import cliProgress from "cli-progress";

import { mils, usdText } from "#contract/mils.ts";
import { createKey } from "#keys/keys.ts";
import { defaultModelOf, loadManifests } from "#platform/bundles.ts";
import { type Config, readConfig } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { type Service, stopAll, untilToldToStop } from "#platform/lifecycle.ts";
import { createLog, type Log } from "#platform/log.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { openDatabase, type Parts } from "./context.ts";
import { balanceMils, dream, type DreamReply } from "./customer.ts";
import { endWith } from "./end.ts";
import { findRunningServer } from "./running-server.ts";
import { createSteps, type Steps } from "./steps.ts";
import { startSystem, untilWarm } from "./system.ts";
import { UserError } from "./user-error.ts";
import { countFrames } from "./video-frames.ts";

const DEMO_CUSTOMER = "demo@dream-engine.local";
/** $1: four rollouts' worth and some more. */
const DEMO_CREDIT = mils(10_000);
const OUT = "rollout.mp4";
const SEED = 7;

/** The two ways to a server look the same from here. */
interface Server extends Service {
  readonly url: string;
  readonly db: Database;
  readonly queues: QueueSystem;
}

async function demo(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("demo", process.env["LOG_LEVEL"] === undefined ? "warn" : config.LOG_LEVEL);
  const steps = createSteps();
  const model = defaultModelOf(await loadManifests(config.MODELS_DIR), config.DEFAULT_MODEL).slug;
  const example = join(config.MODELS_DIR, model, "example");
  const [frame, actions] = await Promise.all([
    readFile(join(example, "start_frame.png")),
    readFile(join(example, "actions.npy")),
  ]);

  const told = untilToldToStop();
  const server = await joinOrStart(config, log, steps);
  try {
    const work = dreamExample({ server, model, frame, actions, steps, config });
    const interrupted = told.then((signal) => {
      throw new UserError(`Interrupted (${signal}).`);
    });
    await Promise.race([work, interrupted]);
  } finally {
    await server.stop();
  }
}

async function joinOrStart(config: Config, log: Log, steps: Steps): Promise<Server> {
  const running = await findRunningServer(config.DATA_DIR);
  if (running) {
    steps.begin(`using the server that runs at ${running.url}`);
    const parts: Parts = [];
    const { db, url } = await openDatabase(config, log, parts);
    const queues = await openQueues({ redis_url: config.REDIS_URL, database_url: url, migrate: false, log });
    parts.push(["queues", queues]);
    return { url: running.url, db, queues, stop: () => stopAll(parts.splice(0), log) };
  }
  // Its own port, so that it neither needs 8080 nor gets in the way of whoever has it.
  const system = await startSystem(
    { ...config, PORT: 0, FLEET: "local", WORKERS: Math.max(1, config.WORKERS) },
    log,
    steps,
  );
  steps.begin("warming the model");
  if (!(await untilWarm(system, AbortSignal.timeout(WARM_TIMEOUT_MS)))) {
    await system.stop();
    throw new UserError("The model's worker does not start; its messages above say why, and `doctor` may know more.");
  }
  steps.done("model is warm");
  return system;
}

/** A large model takes a minute or two. */
const WARM_TIMEOUT_MS = 300_000;

async function dreamExample(options: {
  server: Server;
  model: string;
  frame: Buffer;
  actions: Buffer;
  steps: Steps;
  config: Config;
}): Promise<void> {
  const { server, model, frame, actions, steps, config } = options;
  const key = await createKey(
    server.db,
    { customer: DEMO_CUSTOMER, initial_credits: DEMO_CREDIT, label: "demo" },
    randomBytes,
  );
  const before = await balanceMils(server.url, key.api_key);
  steps.done(`customer ${key.customer_id} with $${usdText(mils(before))} of credit`);

  const progress = await showProgress(server, key.customer_id);
  const request = { url: server.url, apiKey: key.api_key, frame, actions, fields: { seed: String(SEED), model } };
  let reply: DreamReply;
  try {
    reply = await dream(request);
  } finally {
    await progress.stop();
  }
  const after = await balanceMils(server.url, key.api_key);

  await writeFile(OUT, reply.video);
  const decoded = await countFrames(await findFfmpeg(config.FFMPEG_PATH), OUT);
  if (decoded !== reply.frames) {
    throw new Error(`${OUT} decodes to ${decoded} frames, expected the ${reply.frames} that were paid for`);
  }
  steps.done(`dreamed ${reply.frames} frames with ${model}`);
  console.log(summary(reply, before, after));
}

/** A bar of the frames that are done, from the worker's progress signals; silent where nobody watches. */
async function showProgress(server: Server, customerId: string): Promise<Service> {
  const bar = new cliProgress.SingleBar(
    { format: "  dreaming {bar} {value}/{total} frames", barsize: 32, clearOnComplete: true, stream: process.stderr },
    cliProgress.Presets.shades_classic,
  );
  let ours: { readonly id: string; readonly frames: number } | undefined;
  const unsubscribe = await server.queues.signals.subscribe(["progress"], (signal) => {
    if (signal.kind !== "progress") return;
    if (ours) {
      if (signal.rollout_id === ours.id) bar.update(signal.frames);
      return;
    }
    void findOurs();
  });
  // The request's id comes with its answer only, so the first signal makes us look which rollout is this customer's.
  async function findOurs(): Promise<void> {
    const [row] = await server.db
      .query<{ id: string; frames: number }>(
        "SELECT id, frames FROM rollouts WHERE customer_id = $1 AND finished_at IS NULL ORDER BY created_at DESC LIMIT 1",
        [customerId],
      )
      .catch(() => []); // a bar is not worth a failure
    if (!row || ours) return;
    ours = row;
    bar.start(row.frames, 0);
  }
  return {
    async stop() {
      bar.stop();
      await unsubscribe();
    },
  };
}

function summary(reply: DreamReply, before: number, after: number): string {
  const path = resolve(OUT);
  const cost = mils(before - after);
  const opener = process.platform === "darwin" ? "open" : "xdg-open";
  return [
    "",
    `  Video     ${path}`,
    `  Frames    ${reply.frames}`,
    `  Cost      $${usdText(cost)} (${cost} mils)`,
    `  Balance   $${usdText(mils(before))} before, $${usdText(mils(after))} after`,
    `  Timings   engine ${reply.engineWallMs.toFixed(0)} ms, whole call ${reply.totalMs.toFixed(0)} ms`,
    "",
    `  Look at it       ${opener} ${path}`,
    "  Keep it running  npm start",
    "  A key for you    npm run --silent dream-engine -- keys create --customer you@example.com --initial-credits 25.00",
    "",
  ].join("\n");
}

await endWith(demo());
