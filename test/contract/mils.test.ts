import * as fc from "fast-check";
import { expect, test } from "vitest";

import { centsHalfUp, mils, milsFromUsd, usdNumber, usdText } from "#contract/mils.ts";

test.each([
  [0n, 0, "0.0000"],
  [49n, 0, "0.0049"],
  [50n, 1, "0.0050"],
  [245n, 2, "0.0245"],
  [250n, 3, "0.0250"],
  [-245n, -2, "-0.0245"],
  [-250n, -3, "-0.0250"],
  [10_000_000n, 100_000, "1000.0000"],
])("%s mils show as %s cents and $%s", (amount, cents, usd) => {
  expect(centsHalfUp(mils(amount))).toBe(cents);
  expect(usdText(mils(amount))).toBe(usd);
});

test.each([
  ["25", 250_000n],
  ["25.00", 250_000n],
  ["0.0005", 5n],
  ["0", 0n],
  ["999999999.9999", 9_999_999_999_999n],
])("$%s is %s mils", (text, amount) => {
  expect(milsFromUsd(text)).toBe(amount);
});

test.each(["", "-1", "+1", "1.", ".5", "1,000", "0.00001", "1e3", "25 ", "$25", "NaN", "9999999999"])(
  "refuses %j as an amount of dollars and says what was expected",
  (text) => {
    expect(() => milsFromUsd(text)).toThrow(/expected a dollar amount such as 25 or 25.00/);
  },
);

test("refuses numbers that are not exact", () => {
  for (const amount of [0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    expect(() => mils(amount)).toThrow(RangeError);
  }
});

const amounts = fc.bigInt({ min: -(10n ** 13n) + 1n, max: 10n ** 13n - 1n });

test("dollars as text lose nothing and read back as the same amount", () => {
  fc.assert(
    fc.property(amounts, (amount) => {
      const text = usdText(mils(amount));
      expect(text).toMatch(/^-?\d+\.\d{4}$/);
      expect(milsFromUsd(text.replace("-", ""))).toBe(amount < 0n ? -amount : amount);
      expect(usdNumber(mils(amount)).toFixed(4)).toBe(text);
    }),
  );
});

test("cents are never more than half a cent away, and symmetric around zero", () => {
  fc.assert(
    fc.property(amounts, (amount) => {
      const cents = BigInt(centsHalfUp(mils(amount)));
      const distance = cents * 100n - amount;
      expect(distance < 0n ? -distance : distance).toBeLessThanOrEqual(50n);
      expect(BigInt(centsHalfUp(mils(-amount)))).toBe(-cents);
    }),
  );
});
