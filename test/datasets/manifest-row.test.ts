/** Whatever a line says, it is a row or a reason. */
import * as fc from "fast-check";
import { expect, test } from "vitest";

import { isBad, type ManifestRules, parseManifestLine, ROW_ID } from "#datasets/manifest-row.ts";
import { parseActions } from "#inputs/npy.ts";
import { PUSHER } from "#test/gateway/support/models.ts";

const rules: ManifestRules = { model: PUSHER, defaults: {}, allowPrivateUrls: false, filesAllowed: true };
const parse = (text: string) => {
  const bytes = Buffer.from(text);
  return parseManifestLine({ n: 7, bytes, length: bytes.length }, rules);
};

const names = fc.constantFrom(
  "id",
  "start_frame",
  "actions",
  "num_actions",
  "seed",
  "num_steps",
  "guidance",
  "prompt",
  "metadata",
);
const inputs = fc.oneof(
  fc.record({ url: fc.oneof(fc.webUrl(), fc.string()) }),
  fc.record({ upload: fc.string() }),
  fc.record({ base64: fc.oneof(fc.base64String(), fc.string()) }),
  fc.record({ file: fc.string() }),
  fc.array(fc.array(fc.double(), { maxLength: 3 }), { maxLength: 30 }),
);

test("no line throws; what is wrong has a code and a reason that can be stored", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        fc.dictionary(names, fc.oneof(fc.jsonValue(), inputs)).map((value) => JSON.stringify(value)),
      ),
      (text) => {
        const row = parse(text);
        expect(row.n).toBe(7);
        expect(row.row_id ?? "none").toMatch(ROW_ID);
        const { code, message } = isBad(row) ? row : { code: "invalid_input", message: "it is a good one" };
        expect(code).toMatch(/^(invalid_input|url_not_allowed)$/);
        expect(message.length).toBeGreaterThan(10);
      },
    ),
    { numRuns: 2_000 },
  );
});

test.for([
  ['{"id": "ep-1", "sede": 1}', "ep-1"],
  ['{"sede": 1}', null],
  ['{"id": "../up", "sede": 1}', null],
  ['{"id": 7, "sede": 1}', null],
  ['{"id": "ep-1", "sede": 1', null],
  ['["ep-1"]', null],
] as const)("a row that is refused before its fields are read keeps its id where it can be told: %s", ([text, id]) => {
  const row = parse(text);
  expect(isBad(row)).toBe(true);
  expect(row.row_id).toBe(id);
});

test.for([
  ["id", (deep: string) => `{"id": ${deep}}`],
  ["start_frame", (deep: string) => `{"start_frame": {"url": ${deep}}}`],
  ["metadata beside a seed", (deep: string) => `{"seed": 1, "metadata": {"a": ${deep}}}`],
] as const)("thousands of brackets within each other do not end the process: %s", ([, lineOf]) => {
  const row = parse(lineOf("[".repeat(50_000) + "]".repeat(50_000)));
  expect(isBad(row) && row.message).toMatch(/levels of nesting/);
});

test.for(["https://example.com/\0.png", "https://exam\nple.com/", "https://example.com/\uD800"])(
  "a URL that cannot be stored as it is is none: %j",
  (url) => {
    const row = parse(JSON.stringify({ start_frame: { url }, actions: [[0, 0]] }));
    expect(isBad(row) && row.message).toMatch(/^start_frame\.url: expected a URL without control characters/);
  },
);

test("no bytes throw", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      const row = parseManifestLine({ n: 1, bytes: Buffer.from(bytes), length: bytes.length }, rules);
      expect(isBad(row)).toBe(true);
    }),
  );
});

test("a good row comes through as it was, every one of its seed's bits with it", () => {
  const good = fc.record({
    id: fc.stringMatching(/^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$/),
    seed: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
    asText: fc.boolean(),
    num_steps: fc.integer({ min: 1, max: 100 }),
    guidance: fc.double({ min: 0, max: 20, noNaN: true }),
    actions: fc.array(
      fc.tuple(fc.float({ noNaN: true, noDefaultInfinity: true }), fc.float({ noNaN: true, noDefaultInfinity: true })),
      { minLength: 12, maxLength: 12 },
    ),
    metadata: fc.dictionary(
      fc.stringMatching(/^[a-z]{1,8}$/),
      fc.oneof(fc.integer(), fc.stringMatching(/^[ -~]{0,20}$/), fc.boolean()),
      { maxKeys: 5 },
    ),
  });
  fc.assert(
    fc.property(good, ({ id, seed, asText, num_steps, guidance, actions, metadata }) => {
      const fields = { id, num_steps, guidance, actions, metadata, start_frame: { url: "https://example.com/f.png" } };
      const text = `{"seed": ${asText ? `"${seed}"` : seed}, ${JSON.stringify(fields).slice(1)}`;
      const row = parse(text);
      if (isBad(row)) throw new Error(row.message);
      expect(row).toMatchObject({
        row_id: id,
        metadata,
        params: { seed: String(BigInt.asUintN(64, seed)), num_steps },
      });
      expect(row.params.guidance).toBeCloseTo(guidance, 12);
      if (row.actions.kind !== "bytes") throw new Error(row.actions.kind);
      const read = parseActions(row.actions.bytes, { action_dim: 2, chunk_size: 12, actions_max: 240 }, "actions");
      expect([...read.values].map((value) => value + 0)).toEqual(actions.flat().map((value) => value + 0));
    }),
    { numRuns: 300 },
  );
});

test("a seed inside of something else is not the row's", () => {
  const inputsText = '"start_frame":{"url":"https://a.b/c"},"actions":{"url":"https://a.b/c"}';
  const own = parse(`{"metadata":{"seed":9007199254740993},"seed":1,${inputsText}}`);
  expect(own).toMatchObject({ params: { seed: "1" } });
  const twice = parse(`{"seed":9007199254740993,"seed":9007199254740995,${inputsText}}`);
  expect(twice).toMatchObject({ params: { seed: "9007199254740995" } });
});
