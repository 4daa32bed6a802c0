import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { defaultModelOf, loadManifests } from "#platform/bundles.ts";

const SHIPPED = JSON.parse(await readFile("models/pusht-small/model.json", "utf8")) as Manifest;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-bundles-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function put(slug: string, manifest: unknown): Promise<void> {
  await mkdir(join(folder, slug));
  await writeFile(join(folder, slug, "model.json"), typeof manifest === "string" ? manifest : JSON.stringify(manifest));
}
const bundle = (slug: string, overrides: Partial<Manifest> = {}): Manifest => ({ ...SHIPPED, slug, ...overrides });
const flagship = (slug: string, is_flagship: boolean): Manifest =>
  bundle(slug, { catalogue: { ...SHIPPED.catalogue, is_flagship } });

describe("the manifests of a models folder", () => {
  test("are read in the order of their slugs; other folders are passed over", async () => {
    await put("b", bundle("b"));
    await put("a", bundle("a"));
    await mkdir(join(folder, "training"));
    expect((await loadManifests(folder)).map(({ slug }) => slug)).toEqual(["a", "b"]);
  });

  test("include the shipped bundle", async () => {
    expect((await loadManifests("models")).map(({ slug }) => slug)).toContain("pusht-small");
  });

  test.each<[string, unknown, RegExp]>([
    ["not JSON", "{", /m\/model\.json is not JSON/],
    [
      "a field of the wrong type",
      { ...bundle("m"), shapes: { ...SHIPPED.shapes, fps: "ten" } },
      /\/shapes\/fps .*integer/,
    ],
    ["another slug than its folder", bundle("other"), /slug is other, expected the folder's name, m/],
    [
      "blocks that do not fit a chunk",
      bundle("m", { shapes: { ...SHIPPED.shapes, block_frames: 7 } }),
      /block_frames 7 must divide/,
    ],
    [
      "latents that do not fit a block",
      bundle("m", { shapes: { ...SHIPPED.shapes, block_frames: 6, temporal_compression: 4 } }),
      /temporal_compression 4 must divide block_frames 6/,
    ],
    [
      "an unfused body beside one that is not fused",
      bundle("m", {
        graphs: { ...SHIPPED.graphs, denoiser_body_unfused: SHIPPED.graphs.denoiser_body },
        engine: { ...SHIPPED.engine, optimisations: { ...SHIPPED.engine.optimisations, fused_qkv: false } },
      }),
      /fused_qkv must be true/,
    ],
    [
      "too few offsets",
      bundle("m", { actions: { ...SHIPPED.actions, offset: [0] } }),
      /actions\.offset has 1 numbers, expected action_dim 2/,
    ],
    ["a scale of zero", bundle("m", { actions: { ...SHIPPED.actions, scale: [0, 1] } }), /scale must not contain 0/],
  ])("%s: the message names the file and what was expected", async (_name, manifest, message) => {
    await put("m", manifest);
    await expect(loadManifests(folder)).rejects.toThrow(message);
  });

  test("none, or no folder at all: says where it looked", async () => {
    await expect(loadManifests(folder)).rejects.toThrow(`no model bundle in ${folder} (MODELS_DIR)`);
    await expect(loadManifests(join(folder, "x"))).rejects.toThrow(/cannot read the models folder .*MODELS_DIR/);
  });
});

describe("the model of the bare base URL", () => {
  test("is the one asked for, else the flagship, else the first", () => {
    const models = [flagship("a", false), flagship("b", true)];
    expect(defaultModelOf(models, "a").slug).toBe("a");
    expect(defaultModelOf(models, undefined).slug).toBe("b");
    expect(defaultModelOf([flagship("a", false)], undefined).slug).toBe("a");
  });

  test("that does not exist is refused with those that do", () => {
    expect(() => defaultModelOf([bundle("a"), bundle("b")], "c")).toThrow(
      "DEFAULT_MODEL is c, but the bundles are: a, b",
    );
  });
});
