import { readFileSync } from "node:fs";

import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { bundleIdentity, fingerprintOf } from "#inputs/fingerprint.ts";
import { assertScorable, parseParams, samplingParams, scoreOfForm } from "#inputs/params.ts";

import { PUSHER } from "#test/gateway/support/models.ts";

const sampled = (requested: Parameters<typeof samplingParams>[0]) => samplingParams(requested, PUSHER);
const sized = (height: number, width: number) => ({ ...PUSHER, shapes: { ...PUSHER.shapes, height, width } });
const fromJson = (text: string) => {
  const { model: _model, mode: _mode, scored: _scored, webhook_url: _url, ...requested } = parseParams(text);
  return sampled(requested);
};

test("what is not given comes from the model's manifest", () => {
  expect(sampled({})).toEqual({ seed: "0", num_steps: 4, guidance: 0, prompt: "" });
  expect(fromJson("{}")).toEqual(sampled({}));
  expect(fromJson('{"seed": null, "num_steps": null}')).toEqual(sampled({}));
});

describe("seeds", () => {
  test.for([
    ["0", "0"],
    ["7", "7"],
    ["+7", "7"],
    ["-0", "0"],
    ["007", "7"],
    ["-1", "18446744073709551615"],
    ["18446744073709551615", "18446744073709551615"],
    ["-9223372036854775808", "9223372036854775808"],
    ["9007199254740993", "9007199254740993"],
  ] as const)("%s is %s", ([text, canonical]) => {
    expect(sampled({ seed: text }).seed).toBe(canonical);
  });

  test("JSON numbers keep every digit, as numbers and as text", () => {
    expect(fromJson('{"seed": 9007199254740993}').seed).toBe("9007199254740993");
    expect(fromJson('{"seed": -9007199254740993}').seed).toBe(String(2n ** 64n - 9_007_199_254_740_993n));
    expect(fromJson('{"seed": "18446744073709551615"}').seed).toBe("18446744073709551615");
  });

  test("every 64-bit integer is itself modulo 2^64, by form and by JSON", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }), (seed) => {
        const canonical = String(BigInt.asUintN(64, seed));
        expect(sampled({ seed: String(seed) }).seed).toBe(canonical);
        expect(fromJson(`{"seed": ${seed}}`).seed).toBe(canonical);
      }),
    );
  });

  test.for(["", "1.5", "1e3", "0x10", "seven", "18446744073709551616", "-9223372036854775809", " 7", "1".repeat(50)])(
    "refuses %j",
    (seed) => {
      expect(() => sampled({ seed })).toThrow(/^seed: expected an integer from -2\^63 to 2\^64 - 1, got /);
    },
  );

  test.for(["1.5", "1e3", "true", "[1]", '{"a": 1}', '"x"'])("refuses JSON %s", (seed) => {
    expect(() => fromJson(`{"seed": ${seed}}`)).toThrow(/^seed: expected an integer/);
  });
});

test.for(["0", "101", "-1", "2.5", "many", "NaN", "Infinity", true])("refuses num_steps %j", (num_steps) => {
  expect(() => sampled({ num_steps })).toThrow(/^num_steps: expected an integer from 1 to 100, got /);
});

test.for(["-0.1", "20.01", "inf", "NaN", "1e999", "0x1", null])("refuses guidance %j", (guidance) => {
  expect(() => sampled({ guidance })).toThrow(/^guidance: expected a number from 0 to 20, got /);
});

test("numbers are read as forms and JSON write them", () => {
  expect(sampled({ num_steps: "35", guidance: "1e-05" })).toMatchObject({ num_steps: 35, guidance: 0.000_01 });
  expect(fromJson('{"num_steps": 35, "guidance": 1e-05}')).toMatchObject({ num_steps: 35, guidance: 0.000_01 });
  expect(Object.is(sampled({ guidance: "-0" }).guidance, 0)).toBe(true);
});

describe("prompts", () => {
  test("the limit counts bytes of UTF-8", () => {
    expect(sampled({ prompt: "é".repeat(256) }).prompt).toHaveLength(256);
    expect(() => sampled({ prompt: `${"é".repeat(256)}x` })).toThrow(
      "prompt: expected at most 512 bytes of UTF-8, got 513",
    );
  });

  test("refuses what the database could not store", () => {
    expect(() => sampled({ prompt: "a\0b" })).toThrow(/NUL/);
    expect(() => fromJson('{"prompt": "\\ud800"}')).toThrow(/lone surrogates/);
    expect(() => fromJson('{"prompt": 5}')).toThrow("prompt: expected text, got 5");
  });
});

describe("params", () => {
  test.for(["", "not json", "[1]", "5", '"x"', "null", '{"seed": 1'])("refuses %j", (text) => {
    expect(() => parseParams(text)).toThrow(/^params: expected a JSON object/);
  });

  test("refuses an unknown field by name", () => {
    expect(() => parseParams('{"sede": 1}')).toThrow(/unknown field "sede"; expected model, seed, /);
    expect(() => parseParams('{"__proto__": {"seed": 1}}')).toThrow(/unknown field "__proto__"/);
  });

  test("takes what says the same as nothing", () => {
    expect(parseParams('{"score": false, "mode": "sync", "webhook_url": null, "model": "arm"}')).toEqual({
      model: "arm",
      mode: { kind: "sync" },
      scored: false,
      webhook_url: null,
    });
    expect(parseParams(undefined).scored).toBe(false);
    expect(parseParams('{"score": null}').scored).toBe(false);
  });

  test("a score is asked for by a truth value, which forms and their clients spell", () => {
    expect(parseParams('{"score": true}').scored).toBe(true);
    for (const wrong of ["1", '"true"', "[]"]) {
      expect(() => parseParams(`{"score": ${wrong}}`)).toThrow(/^params.score: expected true or false, got /);
    }
    for (const yes of ["true", "True", "TRUE"]) expect(scoreOfForm(yes)).toBe(true);
    for (const no of ["false", "False", undefined]) expect(scoreOfForm(no)).toBe(false);
    for (const wrong of ["1", "yes", " true", "ttrue"]) {
      expect(() => scoreOfForm(wrong)).toThrow(/^score: expected true or false, got /);
    }
  });

  test("frames are scored from the size on that the LPIPS graph takes", () => {
    const { side_min } = JSON.parse(readFileSync("models/lpips/lpips-alex.json", "utf8"));
    expect(() => assertScorable(sized(side_min, side_min))).not.toThrow();
    for (const [height, width] of [
      [side_min - 1, 640],
      [640, side_min - 1],
    ] as const) {
      expect(() => assertScorable(sized(height, width))).toThrow(
        `frames of ${PUSHER.slug} are ${height} × ${width}, expected at least 64 pixels a side`,
      );
    }
  });

  test("an asynchronous one may say how long it waits for its start", () => {
    expect(parseParams('{"mode": "async"}').mode).toEqual({ kind: "async", expires_in_s: 86_400 });
    expect(parseParams('{"mode": "async", "expires_in_s": 604800}').mode).toMatchObject({ expires_in_s: 604_800 });
    expect(parseParams('{"mode": "async", "expires_in_s": 1}').mode).toMatchObject({ expires_in_s: 1 });
    for (const wrong of ["0", "604801", "1.5", '"60"', "-1", "1e999"]) {
      expect(() => parseParams(`{"mode": "async", "expires_in_s": ${wrong}}`)).toThrow(
        /^params.expires_in_s: expected an integer from 1 to 604800 \(seconds\), got /,
      );
    }
    // A synchronous call has a deadline of its own.
    for (const mode of ['"mode": "sync", ', ""]) {
      expect(() => parseParams(`{${mode}"expires_in_s": 60}`)).toThrow(
        'params.expires_in_s: expected it together with mode "async" alone, got 60',
      );
    }
  });

  test("a webhook's URL is taken in either mode, as it was written", () => {
    expect(parseParams('{"webhook_url": "https://example.com/a?b"}').webhook_url).toBe("https://example.com/a?b");
    expect(parseParams('{"mode": "async", "webhook_url": "https://example.com"}').webhook_url).toBe(
      "https://example.com",
    );
    for (const wrong of ["5", '""', '"https://example.com/\\u0000"', '"https://\\ud800.example"', '"https://a b"']) {
      expect(() => parseParams(`{"webhook_url": ${wrong}}`)).toThrow(/^params.webhook_url: expected a URL in visible/);
    }
  });

  test("refuses wrong types by name", () => {
    expect(() => parseParams('{"score": 1}')).toThrow("params.score: expected true or false, got 1");
    expect(() => parseParams('{"mode": "later"}')).toThrow('params.mode: expected "sync" or "async", got "later"');
    expect(() => parseParams('{"model": 3}')).toThrow("params.model: expected a model's slug, got 3");
  });
});

test("whatever is in a fingerprint changes it", () => {
  const base = {
    bundle: bundleIdentity(PUSHER),
    pixels: Buffer.from("pixels"),
    actions: Buffer.from("actions"),
    k: 1,
    params: { seed: "0", num_steps: 4, guidance: 0, prompt: "" },
    scored: false,
  };
  const others = [
    { ...base, bundle: bundleIdentity({ ...PUSHER, sampler: { ...PUSHER.sampler, shift: 2 } }) },
    { ...base, pixels: Buffer.from("Pixels") },
    { ...base, actions: Buffer.from("Actions") },
    { ...base, k: 2 },
    { ...base, params: { ...base.params, seed: "1" } },
    { ...base, params: { ...base.params, num_steps: 5 } },
    { ...base, params: { ...base.params, guidance: 1 } },
    { ...base, params: { ...base.params, prompt: "slow" } },
    { ...base, params: { ...base.params, prompt: "scored" } },
    { ...base, scored: true },
  ];
  const hex = [base, ...others].map((input) => fingerprintOf(input).toString("hex"));
  expect(new Set(hex).size).toBe(hex.length);
  expect(fingerprintOf({ ...base, pixels: Buffer.from("pixels") }).toString("hex")).toBe(hex[0]);
});

test("a rollout that is not scored has the fingerprint that it had before there were scores", () => {
  const before = fingerprintOf({
    bundle: "bundle",
    pixels: Buffer.from("pixels"),
    actions: Buffer.from("actions"),
    k: 1,
    params: { seed: "0", num_steps: 4, guidance: 0, prompt: "" },
    scored: false,
  });
  expect(before.toString("hex")).toBe("dd425cbf1876c6045f4136a756de4a5c64662ade433e7b406cf229af7b231709");
});

test("catalogue texts do not change a bundle's identity", () => {
  const renamed = { ...PUSHER, catalogue: { ...PUSHER.catalogue, summary: "Another summary" } };
  expect(bundleIdentity(renamed)).toBe(bundleIdentity(PUSHER));
});
