/** The local fleet by the suite of every fleet, and what only child processes can do. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";

import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";

import { systemClock } from "#platform/clock.ts";
import { type LocalFleet, startLocalFleet } from "#scheduler/scaling/fleet/local.ts";

import { eventually } from "../queue/test-queue.ts";
import { openWorkerScript, type Order, type WorkerScript } from "../support/worker-script.ts";
import { describeFleet, type FleetUnderTest, MODELS } from "./fleet-conformance.ts";

const WORKER = fileURLToPath(new URL("../support/scripted-worker.ts", import.meta.url));
const [MODEL] = MODELS;

interface LocalUnderTest extends FleetUnderTest {
  readonly driver: LocalFleet;
  readonly script: WorkerScript;
  pidOf(name: string): number;
}

async function open(
  options: { initial?: number; unledMs?: number; drainMaxMs?: number } = {},
): Promise<LocalUnderTest> {
  const folder = await mkdtemp(join(tmpdir(), "dream-fleet-"));
  const script = await openWorkerScript();
  // The fleet's log says which process is which worker.
  const pids = new Map<string, number>();
  const stream = new PassThrough().on("data", (line: Buffer) => {
    const { msg, worker, pid } = JSON.parse(line.toString()) as Record<string, unknown>; // pino's own lines
    if (msg === "worker started") pids.set(String(worker), Number(pid));
  });
  const driver = await startLocalFleet({
    models: MODELS,
    initial: 0,
    entry: WORKER,
    envOf: () => ({ CONTROL: script.path }),
    noteFolder: folder,
    clock: systemClock,
    log: pino(stream),
    ...options,
  });
  const pidOf = (name: string): number => pids.get(name) ?? 0;
  const order = (name: string, what: Order): Promise<void> => script.order(pidOf(name), what);
  return {
    driver,
    script,
    pidOf,
    running: async (model) => {
      const running = new Set(driver.pids(model));
      return [...pids].flatMap(([name, pid]) => (running.has(pid) ? name : []));
    },
    becomeReady: (name) => order(name, { kind: "ready" }),
    setJobs: (name, count) => order(name, { kind: "jobs", count }),
    die: (name) => order(name, { kind: "die", code: 3 }),
    async stop() {
      await driver.stop();
      await script.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

describeFleet("local", open);

describe("a local fleet's workers", () => {
  let fleet: LocalUnderTest;
  afterEach(() => fleet.stop());

  /** Of so many one that takes jobs. */
  async function readyOne(desired = 1): Promise<string> {
    const [{ name }] = await eventually(async () => {
      await fleet.driver.scale(MODEL, desired, 1n);
      const { starting, ready } = await fleet.driver.observe(MODEL);
      for (const { name } of starting) await fleet.becomeReady(name);
      const [one] = ready;
      return one && ([one] as const);
    });
    return name;
  }

  test("one that gets a job just before it is told to go finishes it, and holds its name meanwhile", async () => {
    fleet = await open({ initial: 1 });
    const name = await readyOne();
    const pid = fleet.pidOf(name);
    await fleet.script.order(pid, { kind: "jobs untold", count: 1 }); // its word of it crosses ours
    await fleet.driver.scale(MODEL, 0, 1n);
    await eventually(async () => fleet.script.isDraining(pid));
    expect(await fleet.driver.observe(MODEL)).toMatchObject({ ready: [], starting: [], draining: 1 });
    await fleet.driver.scale(MODEL, 1, 1n);
    await eventually(async () => (await fleet.driver.observe(MODEL)).starting.length === 1);
    expect((await fleet.running(MODEL)).length).toBe(2);
    expect(fleet.driver.state(MODEL)).toBe("warming");
    await fleet.setJobs(name, 0);
    await eventually(async () => (await fleet.driver.observe(MODEL)).draining === 0);
    expect(fleet.driver.pids(MODEL)).not.toContain(pid);
  });

  test("one that does not end by itself when it is told to go is killed in the end, and not replaced", async () => {
    fleet = await open({ initial: 1, drainMaxMs: 300 });
    const name = await readyOne();
    const pid = fleet.pidOf(name);
    await fleet.script.order(pid, { kind: "jobs untold", count: 1 });
    await fleet.driver.scale(MODEL, 0, 1n);
    await eventually(async () => fleet.script.isDraining(pid));
    expect(fleet.driver.pids(MODEL)).toEqual([pid]);
    await eventually(async () => fleet.driver.pids(MODEL).length === 0);
    expect(await fleet.driver.observe(MODEL)).toMatchObject({ ready: [], starting: [], draining: 0, crash_loop: null });
  });

  test("without a leader for long, idle ones go and busy ones stay until they are done", async () => {
    fleet = await open({ initial: 2, unledMs: 600 });
    const first = await readyOne(2);
    await fleet.setJobs(first, 1);
    await eventually(async () => {
      await fleet.driver.scale(MODEL, 2, 1n);
      return (await fleet.driver.observe(MODEL)).ready.find(({ name }) => name === first)?.jobs === 1;
    });
    await eventually(async () => {
      const { ready, starting, draining } = await fleet.driver.observe(MODEL);
      return starting.length + draining === 0 && ready.length === 1;
    });
    expect(await fleet.running(MODEL)).toEqual([first]);
    await fleet.setJobs(first, 0);
    await eventually(async () => (await fleet.running(MODEL)).length === 0);
    // It is led again.
    await fleet.driver.scale(MODEL, 1, 2n);
    expect((await fleet.driver.observe(MODEL)).starting).toHaveLength(1);
  });

  test("a crash loop is still reported, and its pause kept, when the pool was scaled to zero meanwhile", async () => {
    fleet = await open({ initial: 1 });
    const isLooping = async (): Promise<boolean> => {
      const { starting, crash_loop } = await fleet.driver.observe(MODEL);
      for (const { name } of starting) await fleet.die(name);
      return crash_loop !== null;
    };
    await eventually(isLooping);
    await fleet.driver.scale(MODEL, 0, 1n);
    expect(await fleet.driver.observe(MODEL)).toMatchObject({ starting: [], crash_loop: "exit code 3" });
    await fleet.driver.scale(MODEL, 1, 1n);
    expect(fleet.driver.pids(MODEL)).toEqual([]);
    expect(await fleet.driver.observe(MODEL)).toMatchObject({ starting: [{}], crash_loop: "exit code 3" });
    await readyOne();
    expect(fleet.driver.crashLoop(MODEL)).toBeNull();
  });
});
