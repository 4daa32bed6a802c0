/** Lines are the same however their bytes arrive. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { createLineSplitter, type Line } from "#datasets/line-splitter.ts";

const MAX = 12;

/** By the book: all of it at once. */
function linesOf(whole: Buffer): { n: number; text: string | null }[] {
  const text = whole.toString("latin1");
  const ends = text.endsWith("\n") || text === "" ? text.slice(0, -1) : text;
  if (text === "") return [];
  return ends.split("\n").flatMap((line, index) => {
    const bare = (index === 0 ? line.replace(/^\u00ef\u00bb\u00bf/, "") : line).replace(/\r$/, "");
    return bare === "" ? [] : [{ n: index + 1, text: bare.length > MAX ? null : bare }];
  });
}

function split(chunks: readonly Buffer[]): Line[] {
  const splitter = createLineSplitter(MAX);
  return [...chunks.flatMap((chunk) => splitter.push(chunk)), ...splitter.end()];
}

const shown = (lines: readonly Line[]): { n: number; text: string | null }[] =>
  lines.map(({ n, bytes }) => ({ n, text: bytes?.toString("latin1") ?? null }));

const bytes = fc
  .array(
    fc.constantFrom("\n", "\r", "\r\n", "a", "bc", "\u00ef\u00bb\u00bf", "x".repeat(MAX), "y".repeat(MAX - 1), "\0"),
    { maxLength: 40 },
  )
  .map((pieces) => Buffer.from(pieces.join(""), "latin1"));

test("any chunks give the lines that all of it at once gives", () => {
  fc.assert(
    fc.property(bytes, fc.array(fc.nat(60), { maxLength: 20 }), (whole, cuts) => {
      const at = [0, ...cuts.map((cut) => Math.min(cut, whole.length)).sort((a, b) => a - b), whole.length];
      const chunks = at.slice(1).map((end, index) => whole.subarray(at[index], end));
      expect(shown(split(chunks))).toEqual(linesOf(whole));
    }),
    { numRuns: 3_000 },
  );
});

describe("the longest line", () => {
  test.for([
    ["fits", "x".repeat(MAX), "x".repeat(MAX)],
    ["fits before CRLF", `${"x".repeat(MAX)}\r`, "x".repeat(MAX)],
    ["fits after a byte order mark", `\u00ef\u00bb\u00bf${"x".repeat(MAX)}\r`, "x".repeat(MAX)],
    ["is not one longer", "x".repeat(MAX + 1), null],
  ] as const)("%s", ([, line, expected]) => {
    expect(shown(split([Buffer.from(`${line}\n`, "latin1")]))).toEqual([{ n: 1, text: expected }]);
  });

  test("is told its length, and the next one is whole", () => {
    const lines = split([Buffer.from("x".repeat(50)), Buffer.from("y".repeat(50)), Buffer.from("\nok\n")]);
    expect(lines.map(({ n, length }) => [n, length])).toEqual([
      [1, 100],
      [2, 2],
    ]);
  });
});

test("a line without end is not held: a gigabyte of it takes no memory", () => {
  const splitter = createLineSplitter(1024);
  const chunk = Buffer.alloc(1024 * 1024, "x");
  global.gc?.();
  const before = process.memoryUsage();
  for (let count = 0; count < 1024; count += 1) expect(splitter.push(chunk)).toEqual([]);
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  expect(heapUsed + arrayBuffers - before.heapUsed - before.arrayBuffers).toBeLessThan(64 * 1024 * 1024);
  expect(splitter.push(Buffer.from("\n"))).toMatchObject([{ n: 1, bytes: null, length: 1024 ** 3 }]);
});
