import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { ApiError } from "#contract/errors.ts";
import { actionsBytes, parseActions } from "#inputs/npy.ts";

import { actionsFile, npy, npyHeader, someActions } from "#test/gateway/support/npy-writer.ts";

const SHAPE = { action_dim: 2, chunk_size: 12, actions_max: 240 };
const parse = (file: Buffer) => parseActions(file, SHAPE, "actions");

describe("accepted layouts", () => {
  const expected = new Float32Array(someActions(24, 2));

  test.for(["f2", "f4", "f8"] as const)("reads %s, either byte order, either memory order", (dtype) => {
    for (const bigEndian of [false, true]) {
      for (const fortranOrder of [false, true]) {
        const { count, values } = parse(actionsFile(24, 2, { dtype, bigEndian, fortranOrder }));
        expect(count).toBe(24);
        expect(values).toEqual(expected);
      }
    }
  });

  test.for(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"] as const)("casts %s to float32", (dtype) => {
    const signed = dtype.startsWith("i");
    const whole = Array.from({ length: 24 }, (_unused, index) => (signed ? index - 12 : index * 5));
    for (const bigEndian of [false, true]) {
      expect(parse(npy(whole, [12, 2], { dtype, bigEndian })).values).toEqual(new Float32Array(whole));
    }
  });

  test.for([1, 2, 3] as const)("reads format version %s", (version) => {
    expect(parse(actionsFile(24, 2, { version })).values).toEqual(expected);
  });

  test("reads subnormal halves and negative zero", () => {
    const values = Array.from({ length: 24 }, (_unused, index) => index * 2 ** -24);
    expect(parse(npy(values, [12, 2], { dtype: "f2" })).values).toEqual(new Float32Array(values));
    expect(
      Object.is(
        parse(
          npy(
            values.map(() => -0),
            [12, 2],
          ),
        ).values[0],
        -0,
      ),
    ).toBe(true);
  });

  test("takes the longest rollout there is", () => {
    expect(parse(actionsFile(240, 2)).count).toBe(240);
  });
});

const numbers = (count: number): Buffer => Buffer.alloc(count * 4);

describe("refusals name what was expected and what came", () => {
  const cases: readonly (readonly [string, Buffer, RegExp])[] = [
    ["nothing", Buffer.alloc(0), /expected a \.npy file .* got 0 other bytes/],
    ["something else", Buffer.from("hello, world"), /expected a \.npy file/],
    ["a pickle", Buffer.from([0x80, 0x04, 0x95, 1, 2, 3]), /got a Python pickle/],
    ["an .npz archive", Buffer.from("PK\x03\x04 and so on", "latin1"), /got a zip archive/],
    ["an unknown version", npyHeader("'<f4'", [12, 2], { version: 4 }), /format version 1, 2 or 3, got 4/],
    ["a header that is cut off", actionsFile(12, 2).subarray(0, 40), /header is truncated/],
    [
      "a header of nonsense",
      Buffer.concat([actionsFile(12, 2).subarray(0, 10), Buffer.alloc(118, 32)]),
      /not the dictionary/,
    ],
    ["too few bytes", actionsFile(12, 2).subarray(0, -1), /takes 96 bytes, but 95 follow .*truncated/],
    ["too many bytes", Buffer.concat([actionsFile(12, 2), Buffer.alloc(3)]), /but 99 follow .*trailing/],
    ["objects", npyHeader("'|O'", [12, 2]), /got Python objects, dtype \|O/],
    ["a structured dtype", npyHeader("[('x', '<f4'), ('y', '<f4')]", [12]), /got a structured dtype/],
    ["strings", npyHeader("'<U8'", [12, 2]), /got strings, dtype <U8/],
    ["byte strings", npyHeader("'|S4'", [12, 2]), /got byte strings/],
    ["booleans", npyHeader("'|b1'", [12, 2]), /got booleans/],
    ["complex numbers", npyHeader("'<c8'", [12, 2]), /got complex numbers/],
    ["dates", npyHeader("'<M8[ns]'", [12, 2]), /got dates/],
    ["long doubles", npyHeader("'<f16'", [12, 2]), /dtype <f16/],
    [
      "a wrong rank",
      Buffer.concat([npyHeader("'<f4'", [24]), numbers(24)]),
      /expected shape \(T, 2\), got shape \(24,\)/,
    ],
    ["three dimensions", Buffer.concat([npyHeader("'<f4'", [1, 12, 2]), numbers(24)]), /got shape \(1, 12, 2\)/],
    ["a scalar", Buffer.concat([npyHeader("'<f4'", []), numbers(1)]), /got shape \(\)/],
    ["a wrong action_dim", actionsFile(12, 3), /expected shape \(T, 2\), got shape \(12, 3\)/],
    ["a transposed array", actionsFile(2, 12), /expected shape \(T, 2\), got shape \(2, 12\)/],
    ["no actions", Buffer.concat([npyHeader("'<f4'", [0, 2])]), /positive multiple of 12, got shape \(0, 2\)/],
    ["a T that is no multiple", actionsFile(13, 2), /positive multiple of 12, got shape \(13, 2\)/],
    ["a T over the limit", actionsFile(252, 2), /T at most 240, got shape \(252, 2\)/],
    ["a T beyond all bounds", npyHeader("'<f4'", [999_999_999_999_996, 2]), /T at most 240/],
    ["NaN", npy([...someActions(11, 2), 1, NaN], [12, 2]), /got NaN at \[11, 1\]/],
    ["infinity", npy([-Infinity, ...someActions(11, 2), 1], [12, 2]), /got infinity.* at \[0, 0\]/],
    ["half infinity", npy([Infinity, ...someActions(11, 2), 1], [12, 2], { dtype: "f2" }), /got infinity/],
    ["a double beyond float32", npy([1e39, ...someActions(11, 2), 1], [12, 2], { dtype: "f8" }), /beyond float32/],
    ["code in the header", npyHeader("__import__('os').system('true')", [12, 2]), /not the dictionary/],
    [
      "a missing key",
      Buffer.concat([headerOf("{'descr': '<f4', 'shape': (12, 2), }"), numbers(24)]),
      /not the dictionary/,
    ],
    ["an unknown key", Buffer.concat([headerOf("{'descr': '<f4', 'x': 1}"), numbers(24)]), /not the dictionary/],
  ];

  test.for(cases)("refuses %s", ([, file, message]) => {
    const refusal = refusalOf(file);
    expect(refusal.code).toBe("invalid_input");
    expect(refusal.message).toMatch(/^actions: /);
    expect(refusal.message).toMatch(message);
  });

  test("refuses headers made to be slow to read, quickly", () => {
    const started = performance.now();
    for (const text of [
      `{'shape': (${"1".repeat(9_000)}x`,
      `{'shape': (${"1,".repeat(4_500)}x`,
      `{${" ".repeat(9_900)}`,
    ]) {
      expect(refusalOf(headerOf(text)).message).toMatch(/not the dictionary/);
    }
    expect(performance.now() - started).toBeLessThan(500);
  });
});

describe("properties", () => {
  test("float32 values come back as they were written", () => {
    const values = fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { minLength: 24, maxLength: 24 });
    fc.assert(
      fc.property(values, fc.boolean(), fc.boolean(), (numbers, bigEndian, fortranOrder) => {
        const { values: read } = parse(npy(numbers, [12, 2], { bigEndian, fortranOrder }));
        expect(read).toEqual(new Float32Array(numbers));
      }),
    );
  });

  test("whatever the bytes are, the answer is actions or an ApiError", () => {
    const whole = actionsFile(24, 2);
    const damaged = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 6 }).map((changes) => {
      const copy = Buffer.from(whole);
      for (const [at, byte] of changes) copy[at] = byte;
      return copy;
    });
    const noise = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
    const cut = fc.nat(whole.length).map((length) => whole.subarray(0, length));
    fc.assert(
      fc.property(fc.oneof(damaged, noise, cut), (file) => {
        expect(outcomeOf(file)).toBe("as promised");
      }),
      { numRuns: 3_000 },
    );
  });
});

test("candidates are laid out one after the other, little-endian", () => {
  const one = parse(npy([1, ...Array.from({ length: 23 }, () => 0)], [12, 2]));
  const two = parse(npy([2, ...Array.from({ length: 23 }, () => 0)], [12, 2]));
  const bytes = actionsBytes([one, two]);
  expect(bytes.length).toBe(2 * 24 * 4);
  expect([bytes.readFloatLE(0), bytes.readFloatLE(24 * 4)]).toEqual([1, 2]);
});

function headerOf(text: string): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16LE(text.length);
  return Buffer.concat([Buffer.from([0x93]), Buffer.from("NUMPY"), Buffer.from([1, 0]), length, Buffer.from(text)]);
}

function refusalOf(file: Buffer): ApiError {
  try {
    parse(file);
  } catch (error) {
    if (error instanceof ApiError) return error;
    throw error;
  }
  throw new Error("the file was accepted");
}

function outcomeOf(file: Buffer): unknown {
  try {
    const { count, values } = parse(file);
    return values.length === count * 2 && values.every(Number.isFinite) ? "as promised" : values;
  } catch (error) {
    return error instanceof ApiError && error.status === 422 ? "as promised" : error;
  }
}
