import { expect, test } from "vitest";

import { parseExpiry } from "#keys/expiry.ts";

const NOW = Date.UTC(2026, 10, 22, 12);
const iso = (text: string): string => parseExpiry(text, NOW).toISOString();

test("takes days from now, a date, and a time with its zone", () => {
  expect(iso("30d")).toBe("2026-12-22T12:00:00.000Z");
  expect(iso("2027-01-31")).toBe("2027-01-31T00:00:00.000Z");
  expect(iso("2027-01-31T18:00Z")).toBe("2027-01-31T18:00:00.000Z");
  expect(iso("2027-01-31T18:00:30+02:00")).toBe("2027-01-31T16:00:30.000Z");
  expect(iso("2028-02-29")).toBe("2028-02-29T00:00:00.000Z");
});

test.each([
  ["", /30d/],
  ["soon", /30d/],
  ["30", /30d/],
  ["-1d", /30d/],
  ["2027-02-29", /30d/],
  ["2027-13-01", /30d/],
  ["2027-01-31T18:00", /30d/], // whose clock?
  ["31.01.2027", /30d/],
  ["0d", /time to come/],
  ["2026-11-22", /time to come/],
  ["1970-01-01", /time to come/],
  ["9999-01-01", /at most 3650 days/],
  ["99999d", /at most 3650 days/],
])("refuses %j and says what was expected", (text, message) => {
  expect(() => parseExpiry(text, NOW)).toThrow(message);
});
