/**
 * What every fleet driver does (scheduler/scaling/fleet/fleet.ts), whoever runs the workers. Workers do here what the test tells
 * them: each driver's own test brings them (FleetUnderTest). `scale` is called again and again, as the scaler does.
 */
import { afterEach, describe, expect, test } from "vitest";

import type { FleetDriver, PoolWorkers } from "#scheduler/scaling/fleet/fleet.ts";

import { eventually } from "../queue/test-queue.ts";

export const MODELS = ["m", "other"] as const;

export interface FleetUnderTest {
  readonly driver: FleetDriver;
  /** Names, as the driver gives them, of the workers of a model that run, whatever they do. */
  running(model: string): Promise<string[]>;
  // Orders to a worker that does not run, or not yet, come to nothing: the suite repeats them.
  /** A worker that starts has loaded its model. */
  becomeReady(name: string): Promise<void>;
  /** So many jobs are in its hands from now on. */
  setJobs(name: string, count: number): Promise<void>;
  /** It ends by an error of its own. */
  die(name: string): Promise<void>;
  stop(): Promise<void>;
}

const TERM = 7n;
const [MODEL, OTHER] = MODELS;

export function describeFleet(name: string, open: () => Promise<FleetUnderTest>): void {
  describe(`a ${name} fleet`, () => {
    let fleet: FleetUnderTest;
    const opened = async (): Promise<FleetUnderTest> => (fleet = await open());
    afterEach(() => fleet.stop());

    /** Wants so many until it looks as it should. */
    const until = (desired: number, isSo: (seen: PoolWorkers) => boolean | Promise<boolean>): Promise<PoolWorkers> =>
      eventually(async () => {
        await fleet.driver.scale(MODEL, desired, TERM);
        const seen = await fleet.driver.observe(MODEL);
        return (await isSo(seen)) && seen;
      });

    /** So many that take jobs; how long they took to start, and their names. */
    async function ready(count: number): Promise<{ readonly names: string[]; readonly startsS: number[] }> {
      const startsS: number[] = [];
      const { ready } = await until(count, async (seen) => {
        startsS.push(...seen.starts_s);
        for (const { name } of seen.starting) await fleet.becomeReady(name);
        return seen.ready.length === count;
      });
      return { names: ready.map(({ name }) => name), startsS };
    }

    test("has nobody until it is told, then as many as it is told, and says how long each took to start", async () => {
      await opened();
      expect(await fleet.driver.observe(MODEL)).toEqual({
        ready: [],
        starting: [],
        draining: 0,
        crash_loop: null,
        starts_s: [],
      });
      const before = Date.now();
      const { starting } = await until(2, (seen) => seen.starting.length === 2);
      for (const { since_ms } of starting) {
        // A cluster's own clock counts whole seconds.
        expect(since_ms).toBeGreaterThan(before - 2_000);
        expect(since_ms).toBeLessThanOrEqual(Date.now() + 1_000);
      }
      const { names, startsS } = await ready(2);
      expect(new Set(names).size).toBe(2);
      expect(startsS).toHaveLength(2);
      for (const s of startsS) expect(s).toBeGreaterThanOrEqual(0);
      expect((await fleet.driver.observe(MODEL)).starts_s).toEqual([]);
      expect((await fleet.running(MODEL)).toSorted()).toEqual(names.toSorted());
    });

    test("changes nothing when it is told the same again, and nothing of another model", async () => {
      await opened();
      const { names } = await ready(2);
      for (let times = 0; times < 5; times += 1) await fleet.driver.scale(MODEL, 2, TERM);
      const { ready: same, starting, draining } = await fleet.driver.observe(MODEL);
      expect({ names: same.map(({ name }) => name).toSorted(), starting, draining }).toEqual({
        names: names.toSorted(),
        starting: [],
        draining: 0,
      });
      expect(await fleet.driver.observe(OTHER)).toMatchObject({ ready: [], starting: [], draining: 0 });
      expect(await fleet.running(OTHER)).toEqual([]);
    });

    test("drains to zero", async () => {
      await opened();
      await ready(2);
      const { ready: left, starting } = await until(0, (seen) => seen.ready.length + seen.draining === 0);
      expect([...left, ...starting]).toEqual([]);
      await eventually(async () => (await fleet.running(MODEL)).length === 0);
    });

    test("lets idle ones go, those that have been idle longest first", async () => {
      await opened();
      const { names } = await ready(3);
      const [first = "", second = "", third = ""] = names;
      // The one that was busy last stays.
      for (const name of [third, first, second]) {
        await fleet.setJobs(name, 1);
        await eventually(async () => (await jobsOf(fleet.driver, name)) === 1);
        await fleet.setJobs(name, 0);
        await eventually(async () => (await jobsOf(fleet.driver, name)) === 0);
      }
      await until(1, (seen) => seen.ready.length === 1 && seen.draining === 0);
      expect(await eventually(async () => onlyOne(await fleet.running(MODEL)))).toBe(second);
    });

    test("never ends a worker with work: it stays until it is idle, whoever asks", async () => {
      await opened();
      const { names } = await ready(2);
      const [busy = ""] = names;
      await fleet.setJobs(busy, 2);
      await eventually(async () => (await jobsOf(fleet.driver, busy)) === 2);
      await until(0, (seen) => seen.ready.length === 1 && seen.draining === 0);
      expect(await eventually(async () => onlyOne(await fleet.running(MODEL)))).toBe(busy);
      for (let times = 0; times < 5; times += 1) await fleet.driver.scale(MODEL, 0, TERM);
      expect(await fleet.running(MODEL)).toEqual([busy]);
      expect((await fleet.driver.observe(MODEL)).ready).toMatchObject([{ name: busy, jobs: 2 }]);

      await fleet.setJobs(busy, 0);
      await until(0, (seen) => seen.ready.length + seen.draining === 0);
      await eventually(async () => (await fleet.running(MODEL)).length === 0);
    });

    test("ends a worker that only starts, and keeps those that are ready", async () => {
      await opened();
      const { names } = await ready(1);
      await until(3, (seen) => seen.starting.length === 2);
      await eventually(async () => (await fleet.running(MODEL)).length === 3);
      await until(1, (seen) => seen.ready.length === 1 && seen.starting.length + seen.draining === 0);
      await eventually(async () => (await fleet.running(MODEL)).length === 1);
      expect(await fleet.running(MODEL)).toEqual(names);
    });

    test("replaces a worker that died", async () => {
      await opened();
      const { names } = await ready(1);
      await fleet.die(names[0] ?? "");
      await until(1, (seen) => seen.ready.length === 0 && seen.starting.length === 1);
      expect((await ready(1)).startsS).toHaveLength(1);
    });

    test("reports a crash loop with its cause, and no longer when a worker is ready", async () => {
      await opened();
      const { crash_loop } = await until(1, async (seen) => {
        if (seen.crash_loop !== null) return true;
        for (const { name } of seen.starting) await fleet.die(name);
        return false;
      });
      expect(crash_loop).toMatch(/\w/);
      expect(crash_loop).not.toBe("");
      await ready(1);
      await until(1, (seen) => seen.crash_loop === null);
    });

    test("heeds the latest leader alone", async () => {
      await opened();
      const { names } = await ready(1);
      await fleet.driver.scale(MODEL, 0, TERM - 1n);
      await fleet.driver.scale(MODEL, 3, TERM - 1n);
      expect(await fleet.driver.observe(MODEL)).toMatchObject({
        starting: [],
        draining: 0,
        ready: [{ name: names[0] }],
      });
      await eventually(async () => {
        await fleet.driver.scale(MODEL, 0, TERM + 1n);
        return (await fleet.running(MODEL)).length === 0;
      });
      await fleet.driver.scale(MODEL, 1, TERM);
      expect(await fleet.driver.observe(MODEL)).toMatchObject({ starting: [], ready: [] });
    });

    test("refuses a model that it does not know", async () => {
      await opened();
      await expect(fleet.driver.observe("nobody")).rejects.toThrow("nobody");
      await expect(fleet.driver.scale("nobody", 1, TERM)).rejects.toThrow("nobody");
    });
  });
}

async function jobsOf(driver: FleetDriver, name: string): Promise<number | undefined> {
  return (await driver.observe(MODEL)).ready.find((worker) => worker.name === name)?.jobs;
}

const onlyOne = (names: readonly string[]): string | false => names.length === 1 && (names[0] ?? false);
