/**
 * Money. One mil is $0.0001; every amount inside the system is an integer number of mils in a `bigint`.
 * Cents and dollars exist for display alone and are derived here, never stored and never added up.
 */
declare const milsBrand: unique symbol;
export type Mils = bigint & { readonly [milsBrand]: true };

const MILS_PER_CENT = 100n;
const MILS_PER_USD = 10_000n;

/** Takes an integer as mils. Throws RangeError on a number that is no safe integer. */
export function mils(amount: bigint | number | string): Mils {
  if (typeof amount === "number" && !Number.isSafeInteger(amount)) {
    throw new RangeError(`mils must be a safe integer, got ${amount}`);
  }
  return BigInt(amount) as Mils; // the one place where a bigint becomes money
}

/** Whole cents, halves rounded away from zero: 245 mils → 2 cents, 250 → 3, −250 → −3. */
export function centsHalfUp(amount: Mils): number {
  const magnitude = amount < 0n ? 0n - amount : amount;
  const cents = (magnitude + MILS_PER_CENT / 2n) / MILS_PER_CENT;
  return Number(amount < 0n ? 0n - cents : cents);
}

/** Exact dollars with four decimals as text: 245 mils → "0.0245". */
export function usdText(amount: Mils): string {
  const sign = amount < 0n ? "-" : "";
  const magnitude = amount < 0n ? 0n - amount : amount;
  return `${sign}${magnitude / MILS_PER_USD}.${String(magnitude % MILS_PER_USD).padStart(4, "0")}`;
}

/** Dollars as a JSON number, for display fields of the wire. */
export function usdNumber(amount: Mils): number {
  return Number(usdText(amount));
}

/** Parses a dollar amount with at most four decimals ("25", "25.00", "0.0005"). Throws RangeError otherwise. */
export function milsFromUsd(text: string): Mils {
  const match = /^(\d{1,9})(?:\.(\d{1,4}))?$/.exec(text);
  if (!match) {
    throw new RangeError(`expected a dollar amount such as 25 or 25.00, got ${JSON.stringify(text)}`);
  }
  const [, whole = "0", fraction = ""] = match;
  return mils(BigInt(whole) * MILS_PER_USD + BigInt(fraction.padEnd(4, "0")));
}
