import { describe, expect, test } from "vitest";

import { ApiError } from "#contract/errors.ts";
import { newRolloutId } from "#contract/ids.ts";
import { parseRange } from "#gateway/input/range.ts";
import { checkVideoLink, videoUrl } from "#rollouts/signed-url.ts";

const SECRET = Buffer.alloc(32, 7);
const link = { rollout_id: newRolloutId(() => new Uint8Array(16)), candidate: 0, expires: 2_000 };
const signature = new URL(videoUrl(SECRET, "http://localhost", link)).searchParams.get("signature") ?? "";

describe("a signed link", () => {
  test("holds until the second it expires", () => {
    expect(() => checkVideoLink(SECRET, link, signature, 1_999_999)).not.toThrow();
    expect(() => checkVideoLink(SECRET, link, signature, 2_000_000)).toThrow(/expired at 1970-01-01T00:33:20/);
  });

  test.for([
    ["another candidate", { ...link, candidate: 1 }, signature],
    ["another rollout", { ...link, rollout_id: newRolloutId(() => new Uint8Array(16).fill(1)) }, signature],
    ["a later expiry", { ...link, expires: 9_999 }, signature],
    ["no signature", link, ""],
    ["half a signature", link, signature.slice(0, 32)],
    ["a signature that is no hex", link, "z".repeat(64)],
    ["one wrong digit", link, signature.slice(0, -1) + (signature.endsWith("0") ? "1" : "0")],
  ] as const)("is refused with %s", ([, changed, given]) => {
    expect(() => checkVideoLink(SECRET, changed, given, 0)).toThrow(/the signature does not fit this link/);
  });

  test("is refused under another secret", () => {
    expect(() => checkVideoLink(Buffer.alloc(32, 8), link, signature, 0)).toThrow(ApiError);
  });
});

describe("a range of bytes", () => {
  test.for([
    [undefined, null],
    ["bytes=0-9", { start: 0, end: 9 }],
    ["bytes=90-", { start: 90, end: 99 }],
    ["bytes=90-500", { start: 90, end: 99 }],
    ["bytes=-10", { start: 90, end: 99 }],
    ["bytes=-500", { start: 0, end: 99 }],
    ["bytes=-", null],
    ["bytes=9-3", null],
    ["bytes=0-1,5-6", null],
    ["frames=0-1", null],
    ["nonsense", null],
  ] as const)("%j of 100 bytes", ([header, range]) => {
    expect(parseRange(header, 100)).toEqual(range);
  });

  test.for(["bytes=100-", "bytes=-0"])("%j cannot be satisfied", (header) => {
    expect(() => parseRange(header, 100)).toThrow(/expected a range within 100 bytes/);
  });
});
