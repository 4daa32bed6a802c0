/** When a webhook is tried again. */
import { randomBytes } from "node:crypto";

import { assert, integer, property, uint8Array } from "fast-check";
import { expect, test } from "vitest";

import type { RandomBytes } from "#contract/ids.ts";
import { excerptOf, nextAfter } from "#webhooks/answer.ts";
import { ATTEMPT_DELAYS_MS, parseRetryAfter, retryDelayMs } from "#webhooks/schedule.ts";

const least: RandomBytes = (size) => Buffer.alloc(size, 0);
const middle: RandomBytes = (size) => Buffer.concat([Buffer.from([0x80]), Buffer.alloc(size - 1)]);
const most: RandomBytes = (size) => Buffer.alloc(size, 0xff);
const NOW = Date.parse("2026-11-22T12:00:00Z");
const H = 3_600_000;

test("ten attempts: at once, then 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h after the one before", () => {
  const seconds = [0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
  expect(ATTEMPT_DELAYS_MS.map((ms) => ms / 1000)).toEqual(seconds);
  const delays = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((failed) => retryDelayMs(failed, middle, null));
  expect(delays).toEqual(seconds.slice(1).map((s) => s * 1000));
  expect(retryDelayMs(10, middle, null)).toBeNull();
  expect(retryDelayMs(11, middle, H)).toBeNull();
});

test("each a tenth earlier or later at most, evenly", () => {
  expect(retryDelayMs(2, least, null)).toBe(270_000);
  expect(retryDelayMs(2, most, null)).toBeCloseTo(330_000, -1);
  assert(
    property(integer({ min: 1, max: 9 }), uint8Array({ minLength: 4, maxLength: 4 }), (failed, bytes) => {
      const delay = retryDelayMs(failed, () => bytes, null) ?? -1;
      const nominal = ATTEMPT_DELAYS_MS[failed] ?? -1;
      expect(Math.abs(delay - nominal)).toBeLessThanOrEqual(nominal / 10 + 1);
    }),
  );
  const thousand = Array.from({ length: 1_000 }, () => retryDelayMs(3, randomBytes, null) ?? 0);
  const mean = thousand.reduce((sum, delay) => sum + delay, 0) / 1_000;
  expect(Math.abs(mean / 1_800_000 - 1)).toBeLessThan(0.02);
});

test("a receiver may put it off, by no more than a day, and not bring it forward", () => {
  expect(retryDelayMs(1, middle, 60_000)).toBe(60_000);
  expect(retryDelayMs(2, middle, 1)).toBe(300_000);
  expect(retryDelayMs(1, middle, 999 * H)).toBe(24 * H);
});

test.for([
  [undefined, null],
  ["120", 120_000],
  ["0", 0],
  ["Sun, 22 Nov 2026 12:01:00 GMT", 60_000],
  ["Sun, 22 Nov 2026 11:00:00 GMT", 0],
  ["-5", null],
  ["1.5", null],
  ["soon", null],
  ["", null],
  ["99999999999999", null],
  ["2026-11-22", null],
] as const)("Retry-After: %s", ([header, ms]) => {
  expect(parseRetryAfter(header, NOW)).toBe(ms);
});

const after = (status: number | null, failed = 1, retryAfter?: string) =>
  nextAfter(status === null ? null : { status, retryAfter }, { event: "rollout.failed", failed }, middle, NOW);

test("what follows from each answer", () => {
  for (const status of [200, 201, 202, 204, 299]) expect(after(status, 10)).toEqual({ state: "delivered" });
  for (const status of [301, 302, 307, 400, 401, 404, 429, 500, 503, null]) {
    expect(after(status)).toEqual({ state: "pending", delayMs: 5_000, counts: true });
    expect(after(status, 10)).toEqual({ state: "failed", reason: "given up after 10 attempts" });
  }
  expect(after(410)).toEqual({ state: "failed", reason: "its receiver answered 410 Gone" });
  expect(after(429, 1, "90")).toMatchObject({ delayMs: 90_000 });
  expect(after(503, 1, "Sun, 22 Nov 2026 12:01:00 GMT")).toMatchObject({ delayMs: 60_000 });
  expect(after(500, 1, "90")).toMatchObject({ delayMs: 5_000 }); // asked for by 429 and 503 alone
});

test("a test has one attempt, whatever is asked for", () => {
  const test = { event: "webhook.test", failed: 1 } as const;
  const answer = (status: number) => nextAfter({ status, retryAfter: "1" }, test, middle, NOW);
  expect(answer(204)).toEqual({ state: "delivered" });
  for (const status of [302, 404, 429, 500, 503]) {
    expect(answer(status)).toEqual({ state: "failed", reason: "a test is sent once" });
  }
  expect(nextAfter(null, test, middle, NOW)).toEqual({ state: "failed", reason: "a test is sent once" });
  expect(answer(410)).toMatchObject({ state: "failed", reason: "its receiver answered 410 Gone" });
});

test("an excerpt is at most a kilobyte of text that no terminal and no database stumbles over", () => {
  expect(excerptOf(Buffer.from("  fine\r\n"))).toBe("fine");
  expect(excerptOf(Buffer.from("a\0b\u001b[31mred\u202Eback\u2028line"))).toBe("a b [31mred back line");
  expect(excerptOf(Buffer.from([0xff, 0x41, 0xc3]))).toContain("A");
  assert(
    property(uint8Array({ maxLength: 1024 }), (bytes) => {
      const text = excerptOf(Buffer.from(bytes));
      expect(Buffer.byteLength(text)).toBeLessThanOrEqual(1024);
      expect(text).not.toMatch(/\p{Cc}/u);
      expect(text.isWellFormed()).toBe(true);
    }),
  );
});
