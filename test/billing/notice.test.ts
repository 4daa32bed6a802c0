/** The promise about prices as a pure function: examples, each a story an operator could live through. */
import { describe, expect, test } from "vitest";

import { changesAfter, findShortNotice, priceAt, type PriceRow } from "#billing/notice.ts";

const day = (number: number): number => number * 86_400_000;

/** The list at 5 mils from the beginning. */
const LIST: PriceRow = {
  customer_id: null,
  mils_per_frame: 5,
  effective_ms: -Infinity,
  recorded_ms: day(-100),
  overridden: false,
};

/** `who` pays `mils_per_frame` from day `from` on, recorded on day `recorded`. */
const row = (who: string | null, mils_per_frame: number | null, from: number, recorded: number): PriceRow => ({
  customer_id: who,
  mils_per_frame,
  effective_ms: day(from),
  recorded_ms: day(recorded),
  overridden: false,
});

const list = (mils: number, from: number, recorded: number): PriceRow => row(null, mils, from, recorded);

interface Story {
  readonly name: string;
  readonly before: readonly PriceRow[];
  readonly added: PriceRow;
  /** First whom and when it would hit, and the day from which on it is allowed; null: it is fine. */
  readonly refused: { customer_id: string | null; at: number; from: number; to: number; earliest: number } | null;
}

const STORIES: readonly Story[] = [
  { name: "a lowering at once", before: [], added: list(4, 0, 0), refused: null },
  { name: "the same price again", before: [], added: list(5, 0, 0), refused: null },
  { name: "a rise after 30 days", before: [], added: list(6, 30, 0), refused: null },
  {
    name: "a rise after 29 days",
    before: [],
    added: list(6, 29, 0),
    refused: { customer_id: null, at: 29, from: 5, to: 6, earliest: 30 },
  },
  {
    name: "a rise at once",
    before: [],
    added: list(6, 0, 0),
    refused: { customer_id: null, at: 0, from: 5, to: 6, earliest: 30 },
  },
  {
    name: "an announced lowering that is withdrawn on its day",
    before: [list(3, 10, -5)],
    added: list(5, 10, 0),
    refused: { customer_id: null, at: 10, from: 3, to: 5, earliest: 30 },
  },
  {
    name: "an announced rise that is made smaller, from its own day on",
    before: [list(9, 10, -25)],
    added: list(7, 10, 0),
    refused: null,
  },
  {
    name: "a rise that would come before the announced one",
    before: [list(9, 10, -25)],
    added: list(7, 5, 0),
    refused: { customer_id: null, at: 5, from: 5, to: 7, earliest: 10 },
  },
  {
    name: "a committed price below the list's",
    before: [],
    added: row("cus_a", 3, 0, 0),
    refused: null,
  },
  {
    name: "a committed price above the list's",
    before: [],
    added: row("cus_a", 6, 10, 0),
    refused: { customer_id: "cus_a", at: 10, from: 5, to: 6, earliest: 30 },
  },
  {
    name: "the end of a committed price below the list's",
    before: [row("cus_a", 3, -50, -60)],
    added: row("cus_a", null, 20, 0),
    refused: { customer_id: "cus_a", at: 20, from: 3, to: 5, earliest: 30 },
  },
  {
    name: "the end of a committed price above the list's",
    before: [row("cus_a", 8, -50, -90)],
    added: row("cus_a", null, 0, 0),
    refused: null,
  },
  {
    name: "the end of a committed price that is the list's today and less than the list's soon",
    before: [row("cus_a", 5, -50, -60), list(8, 10, -25)],
    added: row("cus_a", null, 1, 0),
    refused: { customer_id: "cus_a", at: 10, from: 5, to: 8, earliest: 30 },
  },
  {
    name: "a rise of the list's that meets customers whose own price has an announced end",
    before: [row("cus_a", 5, -50, -60), row("cus_a", null, 20, -20)],
    added: list(8, 31, 0),
    refused: null,
  },
  {
    name: "a rise of the list's that those with a price of their own do not feel",
    before: [row("cus_a", 4, -50, -60)],
    added: list(8, 30, 0),
    refused: null,
  },
  {
    name: "a lowering that would make a rise of another's date soon after",
    before: [row("cus_a", 5, 10, -1)],
    added: list(3, 5, 0),
    refused: { customer_id: "cus_a", at: 10, from: 3, to: 5, earliest: 10 },
  },
  {
    name: "a lowering before a rise that has been announced for long",
    before: [list(9, 10, -25)],
    added: list(3, 5, 0),
    refused: null,
  },
];

describe("who would pay more than they were told 30 days before", () => {
  test.for([...STORIES])("$name", ({ before, added, refused }) => {
    const problem = findShortNotice([LIST, ...before], added);
    expect(problem).toEqual(
      refused && {
        customer_id: refused.customer_id,
        at_ms: day(refused.at),
        from: refused.from,
        to: refused.to,
        earliest_ms: day(refused.earliest),
      },
    );
  });

  test.for(STORIES.filter(({ refused }) => refused !== null))("$name: allowed from the date that is named", (story) => {
    const rows = [LIST, ...story.before];
    const earliest = findShortNotice(rows, story.added)?.earliest_ms ?? 0;
    expect(findShortNotice(rows, { ...story.added, effective_ms: earliest })).toBeNull();
  });
});

test("of one date the row recorded last counts, and an end gives the list's price back", () => {
  const rows = [LIST, row("cus_a", 3, 1, 0), row("cus_a", 2, 1, 0), row("cus_a", null, 5, 0), list(7, 40, 0)];
  expect([0, 1, 4, 5, 40].map((at) => priceAt(rows, "cus_a", day(at)))).toEqual([5, 2, 2, 5, 7]);
  expect([0, 1, 4, 5, 40].map((at) => priceAt(rows, null, day(at)))).toEqual([5, 5, 5, 5, 7]);
});

test("the notice is what is going to be paid, not what was written down", () => {
  const rows = [LIST, row("cus_a", 5, 1, 0), row("cus_a", 3, 2, 0), list(7, 40, 0), row("cus_a", null, 50, 0)];
  expect(changesAfter(rows, "cus_a", 0)).toEqual([
    { mils_per_frame: 3, effective_ms: day(2) },
    { mils_per_frame: 7, effective_ms: day(50) },
  ]);
  expect(changesAfter(rows, "cus_b", 0)).toEqual([{ mils_per_frame: 7, effective_ms: day(40) }]);
});

test("a change of the list is judged for as many customers as have prices of their own", () => {
  const own = Array.from({ length: 5_000 }, (_, n) => row(`cus_${n}`, 3, (n % 20) + 1, -40));
  const began = performance.now();
  expect(findShortNotice([LIST, ...own], list(6, 30, 0))).toBeNull();
  // Everybody's price begins on one of twenty days, and the last of them is in the way of each.
  const ends = own.map(({ customer_id }) => row(customer_id, null, 25, -10));
  const problem = findShortNotice([LIST, ...own, ...ends, list(4, 24, -30)], list(5, 26, 0));
  expect(problem).toMatchObject({ customer_id: null, at_ms: day(26), from: 4, to: 5, earliest_ms: day(30) });
  expect(performance.now() - began).toBeLessThan(3_000); // some 0.1 s; row by row for each customer, half a minute
});
