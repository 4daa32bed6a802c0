import { readFile } from "node:fs/promises";

import { beforeAll, describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";

import { loadHeldOut } from "../../bench/held-out.ts";

let manifest: Manifest;
beforeAll(async () => {
  const found = (await loadManifests("models")).find(({ slug }) => slug === "pusht-small");
  expect(found).toBeDefined();
  manifest = found as Manifest;
});

const withShapes = (shapes: Partial<Manifest["shapes"]>): Manifest => ({
  ...manifest,
  shapes: { ...manifest.shapes, ...shapes },
});

describe("the held-out rollouts", () => {
  test("are twelve different ones, at the sizes of both bundles, with actions inside the table", async () => {
    const small = await loadHeldOut(manifest);
    const large = await loadHeldOut(withShapes({ width: 128, height: 128 }));
    expect(small.map(({ frame }) => frame.length)).toEqual(Array.from({ length: 12 }, () => 96 * 96 * 3));
    expect(large.map(({ frame }) => frame.length)).toEqual(Array.from({ length: 12 }, () => 128 * 128 * 3));
    expect(new Set(small.map(({ frame }) => Buffer.from(frame).toString("base64"))).size).toBe(12);
    expect(large.map(({ actions }) => actions)).toEqual(small.map(({ actions }) => actions));
    for (const { actions } of small) {
      expect(actions).toHaveLength(48 * 2);
      expect(actions.every((target) => target >= 0 && target <= 512)).toBe(true);
    }
    expect(new Set(small.map(({ prompt }) => prompt))).toEqual(new Set(manifest.text.prompts));
  });

  test("have seeds that training and evaluation do not have", async () => {
    const source = await readFile("models/training/generate_data.py", "utf8");
    const ranges = [...source.matchAll(/^\w+_SEEDS = range\(([\d_]+), ([\d_]+)\)$/gm)].map(([, from = "", to = ""]) =>
      [from, to].map((text) => BigInt(text.replaceAll("_", ""))),
    );
    expect(ranges).toHaveLength(2);
    for (const { seed } of await loadHeldOut(manifest)) {
      for (const [from = 0n, to = 0n] of ranges) expect(seed < from || seed >= to).toBe(true);
    }
  });

  test("are cut to what is wanted, from the front", async () => {
    const [first] = await loadHeldOut(manifest);
    const [short, ...more] = await loadHeldOut(manifest, { count: 1, actions: 24 });
    expect(more).toEqual([]);
    expect(short).toEqual({ ...first, actions: first?.actions.slice(0, 48) });
  });

  test.each([
    ["more rollouts than there are", { count: 13 }, "expected a multiple of 1 from 1 to 12"],
    ["none", { count: 0 }, "expected a multiple of 1 from 1 to 12"],
    ["half a chunk", { actions: 18 }, "expected a multiple of 12 from 12 to 48"],
    ["more actions than there are", { actions: 60 }, "expected a multiple of 12 from 12 to 48"],
  ])("refuse %s", async (_, wanted, message) => {
    await expect(loadHeldOut(manifest, wanted)).rejects.toThrow(message);
  });

  test("refuse a model of another size, or with other actions", async () => {
    await expect(loadHeldOut(withShapes({ width: 64, height: 64 }))).rejects.toThrow("have 96×96 or 128×128 and 2");
    await expect(loadHeldOut(withShapes({ action_dim: 3 }))).rejects.toThrow("3 numbers an action");
  });
});
