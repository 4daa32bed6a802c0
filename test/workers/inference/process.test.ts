/** The worker as a process: its start, its end, and the faults that nothing but its end repairs. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { readWorkerSettings } from "#workers/inference/settings.ts";

import { freePort } from "#cli/ports.ts";
import { eventually } from "./support/eventually.ts";
import { ENDLESS_ACTION } from "./support/tiny-bundle.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

const ENTRY = fileURLToPath(new URL("../../../workers/inference/main.ts", import.meta.url));
/** Long enough for any honest run of the tiny bundle. */
const RUN_TIMEOUT_MS = 1_500;
const SLOW_ACTION = 4_000;

let place: Workplace;
const children: ChildProcess[] = [];
beforeAll(async () => {
  place = await createWorkplace();
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});
afterAll(() => place.stop());

interface WorkerProcess {
  readonly child: ChildProcess;
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
  stderr(): string;
}

function spawnWorker(env: Record<string, string> = {}): WorkerProcess {
  let stderr = "";
  const child = fork(ENTRY, {
    stdio: ["ignore", "ignore", "pipe", "ipc"],
    env: {
      PATH: process.env["PATH"],
      NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
      MODEL: "tiny",
      MODELS_DIR: place.modelsDir,
      DATABASE_URL: place.databaseUrl,
      BLOB_URL: `file://${place.blobsDir}`,
      ENGINE_RUN_TIMEOUT_MS: String(RUN_TIMEOUT_MS),
      ...env,
    },
  });
  children.push(child);
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const exited = once(child, "exit").then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as string | null,
  }));
  return { child, exited, stderr: () => stderr };
}

async function startWorker(env: Record<string, string> = {}): Promise<WorkerProcess> {
  const worker = spawnWorker(env);
  // It may tell of a first job before.
  const ready = new Promise((resolve) => {
    worker.child.on("message", (message: { type: string }) => message.type === "ready" && resolve("ready"));
  });
  expect(await Promise.race([ready, worker.exited.then(() => worker.stderr())])).toBe("ready");
  return worker;
}

test("says when it is warm, serves, finishes what it has on SIGTERM and ends with 0", async () => {
  const { child, exited } = await startWorker();
  const { id, data } = await place.submit({ chunks: 50, actions: [SLOW_ACTION] });
  await place.progressOf(data.rollout_id);
  child.kill("SIGINT"); // a terminal's Ctrl-C; the parent decides
  child.kill("SIGTERM");
  expect(await exited).toEqual({ code: 0, signal: null });
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
});

test("puts back what outlasts the drain, in time before the fleet would kill it", { timeout: 60_000 }, async () => {
  const { child, exited } = await startWorker();
  const { id, data } = await place.submit({ chunks: 100, actions: [30 * SLOW_ACTION] });
  await place.progressOf(data.rollout_id);
  const toldAt = performance.now();
  child.kill("SIGTERM");
  expect(await exited).toEqual({ code: 0, signal: null });
  expect(performance.now() - toldAt).toBeLessThan(8_000);
  expect(await place.predictions.find(id)).toEqual({ state: "waiting", data });
  await place.predictions.remove(id);
});

const stateAt = async (port: number): Promise<unknown> =>
  fetch(`http://127.0.0.1:${port}/state`).then(
    (response) => response.json(),
    () => null, // not listening yet
  );

test("told to drain it takes nothing more, finishes what it has, ends with 0, and says so all along", async () => {
  const port = await freePort();
  const { child, exited } = await startWorker({ METRICS_PORT: String(port) });
  const counts: unknown[] = [];
  child.on(
    "message",
    (message: { type: string; count?: number }) => message.type === "jobs" && counts.push(message.count),
  );
  expect(await stateAt(port)).toEqual({
    state: "ready",
    model: "tiny",
    jobs: 0,
    idle_since_ms: expect.any(Number),
    busy_ms: 0,
  });
  const first = await place.submit({ chunks: 50, actions: [SLOW_ACTION] });
  await place.progressOf(first.data.rollout_id);
  expect(await stateAt(port)).toEqual({
    state: "ready",
    model: "tiny",
    jobs: 1,
    idle_since_ms: null,
    busy_ms: expect.any(Number),
  });

  child.send({ type: "drain" });
  await eventually(async () => ((await stateAt(port)) as { state: string }).state === "draining");
  expect((await fetch(`http://127.0.0.1:${port}/readyz`)).status).toBe(503);
  const second = await place.submit();
  expect(await exited).toEqual({ code: 0, signal: null });
  expect(await place.outcomeOf(first.id)).toMatchObject({ kind: "succeeded" });
  expect(counts).toEqual([1, 0]);
  expect(await place.predictions.find(second.id)).toEqual({ state: "waiting", data: second.data });
  expect(place.settled.has(second.id)).toBe(false);
  await place.predictions.remove(second.id);
});

test("a SIGTERM while it drains does not wait for what it has", { timeout: 60_000 }, async () => {
  const { child, exited } = await startWorker();
  const { id, data } = await place.submit({ chunks: 100, actions: [30 * SLOW_ACTION] });
  await place.progressOf(data.rollout_id);
  child.send({ type: "drain" });
  const toldAt = performance.now();
  child.kill("SIGTERM");
  expect(await exited).toEqual({ code: 0, signal: null });
  expect(performance.now() - toldAt).toBeLessThan(8_000);
  expect(await place.predictions.find(id)).toEqual({ state: "waiting", data });
  await place.predictions.remove(id);
});

test("a SIGTERM while it loads its model ends it at once", async () => {
  const port = await freePort();
  const { child, exited } = spawnWorker({ METRICS_PORT: String(port) });
  const state = await eventually(() => stateAt(port));
  expect(state).toEqual({ state: "starting", model: "tiny", jobs: 0, idle_since_ms: null, busy_ms: 0 });
  child.kill("SIGTERM");
  expect(await exited).toEqual({ code: null, signal: "SIGKILL" });
});

test("ends when its parent is gone", async () => {
  const { child, exited } = await startWorker();
  child.disconnect();
  expect(await exited).toEqual({ code: 0, signal: null });
});

test("refuses to start without a queue and says what was expected", async () => {
  const worker = spawnWorker({ DATABASE_URL: "" });
  expect(await worker.exited).toEqual({ code: 1, signal: null });
  expect(worker.stderr()).toContain("REDIS_URL, DATABASE_URL: expected one of them, got neither");
});

test("refuses an optimisation that the bundle does not have, and names those that it has", async () => {
  const worker = spawnWorker({ ENGINE_OPTIMISATIONS: "text_cache,teacache" });
  expect(await worker.exited).toEqual({ code: 1, signal: null });
  expect(worker.stderr()).toContain("ENGINE_OPTIMISATIONS: tiny does not have teacache; it has guidance_shortcut");
});

test("refuses a provider that is not installed, and names those that are", async () => {
  const worker = spawnWorker({ ORT_PROVIDERS: "cuda,cpu" });
  expect(await worker.exited).toEqual({ code: 1, signal: null });
  expect(worker.stderr()).toContain("ORT_PROVIDERS: cuda is not in this installation of ONNX Runtime, which has cpu.");
});

test("refuses to serve a bundle that is not there and names those that are", async () => {
  const worker = spawnWorker({ MODEL: "nobody" });
  expect(await worker.exited).toEqual({ code: 1, signal: null });
  expect(worker.stderr()).toMatch(/MODEL is nobody, but the bundles in .* are: tiny/);
});

test.each([
  [{}, "MODEL: expected the slug"],
  [{ MODEL: "tiny", ENGINE_RUN_TIMEOUT_MS: "soon" }, "ENGINE_RUN_TIMEOUT_MS: expected milliseconds"],
  [{ MODEL: "tiny", ENGINE_RUN_TIMEOUT_MS: "5" }, "ENGINE_RUN_TIMEOUT_MS: expected milliseconds"],
])("of its own settings, %j is refused", (env, message) => {
  expect(() => readWorkerSettings(env)).toThrow(message);
});

test(
  "a run that hangs ends the process; the rollout runs once more, alone, and then fails",
  { timeout: 60_000 },
  async () => {
    const first = await startWorker();
    const { id } = await place.submit({ actions: [ENDLESS_ACTION] });
    expect(await first.exited).toEqual({ code: null, signal: "SIGKILL" });
    expect(await place.predictions.find(id)).toMatchObject({ state: "waiting", data: { alone: true } });

    const second = await startWorker();
    expect(await place.outcomeOf(id)).toMatchObject({ kind: "failed", code: "engine_timeout" });
    expect(await second.exited).toEqual({ code: null, signal: "SIGKILL" });
  },
);

test("a rollout whose worker dies twice is given up by the next worker", { timeout: 60_000 }, async () => {
  const { id, data } = await place.submit({ chunks: 100, actions: [SLOW_ACTION] });
  for (let death = 0; death < 2; death++) {
    const { child, exited } = await startWorker();
    await place.progressOf(data.rollout_id); // BullMQ has noticed that the worker before is gone
    child.kill("SIGKILL");
    await exited;
  }
  await startWorker();
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "failed", code: "engine_failed" });
});
