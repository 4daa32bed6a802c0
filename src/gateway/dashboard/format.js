/** Numbers as people read them. Null is "–" everywhere: nothing was measured. */
const NONE = "–";

/** 1,234; from a hundred thousand on 123 k, 4.6 M. */
export function count(number) {
  if (number === null) return NONE;
  if (number < 100_000) return Math.round(number).toLocaleString("en-US");
  const [scaled, unit] = number < 1_000_000 ? [number / 1_000, "k"] : [number / 1_000_000, "M"];
  return `${scaled.toFixed(scaled < 100 ? 1 : 0)} ${unit}`;
}

/** A rate, with a digit behind the point while it is small. */
export const rate = (number) => (number !== 0 && number < 10 ? number.toFixed(1) : count(number));

/** 240 ms, 1.52 s, 31.0 s, 12 min. */
export function milliseconds(ms) {
  if (ms === null) return NONE;
  if (ms < 995) return `${Math.round(ms)} ms`;
  if (ms < 9_995) return `${(ms / 1_000).toFixed(2)} s`;
  return ms < 119_500 ? `${(ms / 1_000).toFixed(1)} s` : duration(ms / 1_000);
}

/** 42 s, 12 min, 3 h, 5 days. */
export function duration(s) {
  if (s === null) return NONE;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7_200) return `${Math.round(s / 60)} min`;
  return s < 172_800 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} days`;
}

/** Dollars, given as a number or as exact text; what is below a dollar keeps the mils that it was counted in. */
export function usd(amount) {
  if (amount === null) return NONE;
  const dollars = Number(amount);
  const digits = dollars !== 0 && Math.abs(dollars) < 1 ? 4 : 2;
  return dollars.toLocaleString("en-US", {
    style: "currency",
    currency: "USD",
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

export const percent = (share) => (share === null ? NONE : `${(share * 100).toFixed(1)} %`);

export const plural = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

/** Between two times of the server's: a clock of this machine that is wrong does not matter. */
export const secondsBetween = (from, to) => Math.max(0, (Date.parse(to) - Date.parse(from)) / 1_000);

/** "2026-11" → "November 2026" */
export const monthName = (month) =>
  new Date(`${month}-01T00:00:00Z`).toLocaleDateString("en-US", { month: "long", year: "numeric", timeZone: "UTC" });

/** Of an ISO time, in this browser's zone. */
export const clockTime = (iso) => new Date(iso).toLocaleTimeString("en-GB");
