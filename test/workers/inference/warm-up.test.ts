/** How many samples an engine holds is found by trying, within the memory that is there. */
import { describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { BundleMismatch } from "#workers/inference/engine/graphs.ts";
import {
  fillToOf,
  type MemoryGauge,
  rowsWorthOf,
  type TimedForward,
  warmUp,
} from "#workers/inference/engine/warm-up.ts";

import { createScriptedGraphs, runsOf } from "./support/scripted-graphs.ts";
import { tinyManifest } from "./support/tiny-bundle.ts";

const MIB = 2 ** 20;

function manifestFor(samples: number): Manifest {
  const manifest = tinyManifest();
  return { ...manifest, engine: { ...manifest.engine, max_batch_samples: samples } };
}

interface Machine {
  readonly samples?: number;
  /** Every row that was ever in one batch keeps so much. */
  readonly rowBytes?: number;
  readonly freeBytes?: number;
  /** Batches of this size and more fail. */
  readonly failsAt?: number;
  readonly error?: Error;
}

async function warmOn({ samples = 16, rowBytes = 0, freeBytes = 0, failsAt, error }: Machine) {
  const manifest = manifestFor(samples);
  const graphs = createScriptedGraphs({ manifest });
  let largest = 0;
  graphs.beforeRun = (graph, inputs) => {
    const rows = Object.values(inputs)[0]?.dims[0] ?? 0;
    if (failsAt !== undefined && rows >= failsAt && graph === "denoiser_body") throw error ?? new Error("no memory");
    largest = Math.max(largest, rows);
  };
  const gauge: MemoryGauge = {
    read: async () => ({
      usedBytes: 100 * MIB + largest * rowBytes,
      availableBytes: freeBytes - largest * rowBytes,
    }),
  };
  const warm = await warmUp({ manifest, graphs, memory: rowBytes > 0 ? gauge : null, now: () => 0 });
  const sizes = [...new Set(runsOf(graphs, "denoiser_body").map(({ rows }) => rows))];
  return { ...warm, sizes };
}

test("goes up to the manifest's limit where nothing speaks against it", async () => {
  expect(await warmOn({ samples: 6 })).toMatchObject({ samplesMax: 6, limitedBy: null, sizes: [1, 2, 4, 6] });
});

test("stops at the largest batch that succeeded", async () => {
  const { samplesMax, limitedBy, sizes } = await warmOn({ failsAt: 5 });
  expect([samplesMax, limitedBy, sizes]).toEqual([4, "a batch of 8 failed: no memory", [1, 2, 4]]);
});

test("does not try a batch that memory is not there for", async () => {
  // 10 MiB a row of 100: after 4 rows 60 are free, of which 48 may be used; the next 4 need 40, the 8 after them 80.
  const { samplesMax, limitedBy, sizes } = await warmOn({ rowBytes: 10 * MIB, freeBytes: 100 * MIB });
  expect([samplesMax, sizes]).toEqual([8, [1, 2, 4, 8]]);
  expect(limitedBy).toBe("a batch of 16 needs 80 MiB more, 16 MiB are free");
});

test("a bundle that cannot run one sample does not come up", async () => {
  await expect(warmOn({ failsAt: 1 })).rejects.toThrow("no memory");
});

test("graphs that do not fit their manifest are refused at any size, not taken for a lack of memory", async () => {
  await expect(warmOn({ failsAt: 2, error: new BundleMismatch("wrong shape") })).rejects.toThrow("wrong shape");
});

/** Batches of 1, 2, 4 … */
const timed = (...ms: readonly number[]): TimedForward[] => ms.map((value, i) => ({ rows: 2 ** i, ms: value }));

describe("rows worth having in a forward", () => {
  test.each<[string, readonly TimedForward[], number]>([
    ["one where every row costs the same", timed(10, 20, 40), 1],
    ["one where more gain less than the noise", timed(10, 18, 36), 1],
    ["all where rows are free", timed(10, 10, 11), 4],
    ["as many as it takes to be near the best", timed(10, 12, 19, 44), 4],
    ["one where nothing but one sample fits", timed(10), 1],
  ])("are %s", (_, forwards, expected) => {
    expect(rowsWorthOf(forwards)).toBe(expected);
  });
});

describe("rows that bulk may add to a realtime forward", () => {
  test.each<[string, readonly TimedForward[], readonly number[]]>([
    ["none where every row costs the same", timed(1, 2, 4), [1, 1, 2, 3, 4]],
    ["all where rows are free", timed(10, 10, 11), [4, 4, 4, 4, 4]],
    ["as many as cost a fifth as much again", timed(10, 12, 18), [2, 2, 2, 4, 4]],
    ["none where nothing but one sample fits", timed(10), [1, 1]],
  ])("are %s", (_, forwards, expected) => {
    expect(fillToOf(forwards)).toEqual(expected);
  });

  test("are measured while warming", async () => {
    const manifest = manifestFor(4);
    const graphs = createScriptedGraphs({ manifest });
    let clock = 0;
    // Bodies and encoders that take any rows in the same time, and a decoder whose time grows with them.
    graphs.beforeRun = (graph, inputs) => {
      const rows = Object.values(inputs)[0]?.dims[0] ?? 0;
      clock += graph === "decoder" ? rows : ["denoiser_body", "frame_encoder"].includes(graph) ? 1_000 : 0;
    };
    const warm = await warmUp({ manifest, graphs, memory: null, now: () => clock });
    const all = [4, 4, 4, 4, 4];
    expect(warm).toMatchObject({ fillTo: { encode: all, denoise: all, decode: [1, 1, 2, 3, 4] }, rowsWorth: 4 });
  });
});
