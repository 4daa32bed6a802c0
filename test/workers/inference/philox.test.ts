import { readFileSync } from "node:fs";

import { expect, test } from "vitest";

import { chunkNoise, keyOfSeed, philox4x32, type Words4 } from "#workers/inference/engine/philox.ts";

interface Golden {
  readonly cases: readonly {
    readonly seed: string;
    readonly key: [number, number];
    readonly chunk: number;
    readonly words: number[];
    readonly normals: number[];
  }[];
}
const golden = JSON.parse(readFileSync("test/golden/philox.json", "utf8")) as Golden;

test.each<[Words4, [number, number], Words4]>([
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
])("gives the known answers of the authors' own test for counter %j and key %j", (counter, key, words) => {
  expect(philox4x32(counter, key)).toEqual(words);
});

test.each(golden.cases)("makes the reference's integers for seed $seed, chunk $chunk, bit by bit", (one) => {
  const key = keyOfSeed(BigInt(one.seed));
  const words = Array.from({ length: one.words.length / 4 }, (_, i) => philox4x32([i, 0, one.chunk, 0], key)).flat();
  expect(key).toEqual(one.key);
  expect(words).toEqual(one.words);
});

test.each(golden.cases)("makes the reference's normals for seed $seed, chunk $chunk, within one float32 ulp", (one) => {
  const noise = chunkNoise(BigInt(one.seed), one.chunk, one.normals.length);
  for (const [i, expected] of one.normals.entries()) {
    expect(Math.abs((noise[i] ?? Number.NaN) - expected)).toBeLessThanOrEqual(Math.abs(expected) * 2 ** -23);
  }
});

test("takes seeds modulo 2^64, so that −1 and 2^64 − 1 are the same", () => {
  expect(chunkNoise(-1n, 0, 8)).toEqual(chunkNoise(2n ** 64n - 1n, 0, 8));
  expect(keyOfSeed(2n ** 64n + 5n)).toEqual(keyOfSeed(5n));
});

test("an incomplete last group drops what it does not need", () => {
  expect(chunkNoise(7n, 3, 5)).toEqual(chunkNoise(7n, 3, 8).subarray(0, 5));
});
