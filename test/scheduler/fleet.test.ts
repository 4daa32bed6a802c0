import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";

import * as fc from "fast-check";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { systemClock } from "#platform/clock.ts";
import type { Log } from "#platform/log.ts";
import { processInfo } from "#platform/processes.ts";
import { type LocalFleet, startLocalFleet } from "#scheduler/scaling/fleet/local.ts";
import { killOrphans } from "#scheduler/scaling/fleet/orphans.ts";
import { afterDeath, NO_DEATHS } from "#scheduler/scaling/fleet/restart-policy.ts";

import { eventually } from "../queue/test-queue.ts";
import { silentLog } from "../support/postgres.ts";

const WORKER = fileURLToPath(new URL("fake-worker.ts", import.meta.url));
const PARENT = fileURLToPath(new URL("fleet-parent.ts", import.meta.url));

let folder: string;
let fleet: LocalFleet | undefined;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-fleet-"));
});
afterEach(async () => {
  await fleet?.stop();
  fleet = undefined;
  await rm(folder, { recursive: true, force: true });
});

async function start(
  mode: string,
  { size = 1, log = silentLog }: { size?: number; log?: Log } = {},
): Promise<LocalFleet> {
  fleet = await startLocalFleet({
    models: ["m"],
    initial: size,
    entry: WORKER,
    envOf: () => ({ MODE: mode }),
    noteFolder: folder,
    clock: systemClock,
    log,
  });
  return fleet;
}

/** A log whose entries the test can read. */
function listen(): { log: Log; entries: Record<string, unknown>[] } {
  const entries: Record<string, unknown>[] = [];
  const stream = new PassThrough().on("data", (line: Buffer) => entries.push(JSON.parse(line.toString())));
  return { log: pino(stream), entries };
}

const isGone = async (pid: number): Promise<boolean> => (await processInfo(pid)) === null;

describe("a local fleet", () => {
  test("starts the number it was told, and is warm when one is ready", async () => {
    const started = await start("", { size: 2 });
    expect(started.state("m")).toBe("warming");
    await eventually(async () => (await started.observe("m")).ready.length === 2);
    expect(started.state("m")).toBe("warm");
    expect(started.state("another model")).toBe("cold");
  });

  test("replaces a worker that dies", async () => {
    const started = await start("");
    await eventually(async () => started.state("m") === "warm");
    const [first] = started.pids("m");
    if (first === undefined) throw new Error("no worker runs");
    process.kill(first, "SIGKILL");
    const [second] = await eventually(async () => {
      const pids = started.state("m") === "warm" && started.pids("m");
      return pids && pids[0] !== first && pids;
    });
    expect(second).not.toBe(first);
    expect(started.crashLoop("m")).toBeNull();
  });

  test("reports a crash loop, with the worker's last words, and pauses longer each time", async () => {
    const { log, entries } = listen();
    const started = await start("crash", { log });
    await eventually(async () => started.crashLoop("m") !== null);
    expect(started.crashLoop("m")).toBe("exit code 3");
    expect(["cold", "warming"]).toContain(started.state("m"));
    expect(entries).toContainEqual(expect.objectContaining({ output: "fatal: no such graph", worker: "m#0" }));
    const pauses = entries.flatMap((entry) => (typeof entry["pause_ms"] === "number" ? [entry["pause_ms"]] : []));
    expect(pauses.slice(0, 3)).toEqual([250, 500, 1_000]);
    expect(entries).toContainEqual(expect.objectContaining({ level: 50, deaths: 3 }));
  });

  test("gives a worker the environment it was told and nothing else", async () => {
    const { log, entries } = listen();
    process.env["SECRET_OF_THE_PARENT"] = "x";
    await start("env", { log });
    const entry = await eventually(async () => entries.find(({ msg }) => msg === "environment"));
    delete process.env["SECRET_OF_THE_PARENT"];
    expect(entry).toMatchObject({ level: 40, worker: "m#0" });
    expect((entry["names"] as string[]).filter((name) => !name.startsWith("NODE_"))).toEqual([]);
  });

  test("stops its workers, and leaves no note behind", async () => {
    const started = await start("", { size: 2 });
    await eventually(async () => (await started.observe("m")).ready.length === 2);
    const pids = started.pids("m");
    await eventually(async () => (await readdir(folder)).length === 1);
    await started.stop();
    expect(await Promise.all(pids.map(isGone))).toEqual([true, true]);
    expect(await readdir(folder)).toEqual([]);
    await started.stop();
  });

  test("kills a worker that does not heed SIGTERM, within the bound of any stop", { timeout: 15_000 }, async () => {
    const started = await start("stubborn");
    await eventually(async () => started.state("m") === "warm");
    const [pid = 0] = started.pids("m");
    const before = performance.now();
    await started.stop();
    expect(performance.now() - before).toBeLessThan(10_000);
    expect(await isGone(pid)).toBe(true);
  });
});

/** The worker of a fleet whose process was killed. */
async function killedParent(mode: string): Promise<number> {
  const parent = fork(PARENT, [folder, WORKER, mode], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  const [message] = (await once(parent, "message")) as [{ pids: number[] }];
  const [pid = 0] = message.pids;
  await eventually(async () => (await readdir(folder)).length === 1);
  const exited = once(parent, "exit");
  parent.kill("SIGKILL");
  await exited;
  return pid;
}

describe("workers whose parent was killed", () => {
  test("end by themselves", async () => {
    const pid = await killedParent("");
    expect(await eventually(() => isGone(pid))).toBe(true);
  });

  test("are ended by the next start when they hang; a process that only has the same id is left alone", async () => {
    const pid = await killedParent("hang");
    expect(await isGone(pid)).toBe(false);
    expect(await killOrphans(folder, silentLog)).toBe(1);
    await eventually(() => isGone(pid));
    expect(await killOrphans(folder, silentLog)).toBe(0);
  });

  test("of a living parent are nobody's orphans", async () => {
    const started = await start("");
    await eventually(async () => started.state("m") === "warm" && (await readdir(folder)).length === 1);
    expect(await killOrphans(folder, silentLog)).toBe(0);
    expect(started.state("m")).toBe("warm");
  });
});

describe("when a dead worker is replaced", () => {
  test("pauses double up to half a minute", () => {
    let deaths = NO_DEATHS;
    const pauses = Array.from({ length: 9 }, () => {
      const next = afterDeath(deaths, 0);
      deaths = next.deaths;
      return next.pause_ms;
    });
    expect(pauses).toEqual([250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
  });

  test("one that had been ready for a minute starts the count afresh", () => {
    expect(afterDeath({ in_a_row: 9 }, 60_000)).toEqual({ deaths: { in_a_row: 1 }, pause_ms: 250, crash_loop: false });
    expect(afterDeath({ in_a_row: 9 }, 59_999).crash_loop).toBe(true);
  });

  test("the pause stays within its bounds", () => {
    fc.assert(
      fc.property(fc.nat(10_000), fc.nat(), (in_a_row, readyMs) => {
        const { pause_ms } = afterDeath({ in_a_row }, readyMs);
        expect(pause_ms).toBeGreaterThanOrEqual(250);
        expect(pause_ms).toBeLessThanOrEqual(30_000);
      }),
    );
  });
});
