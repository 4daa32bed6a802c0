import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { mils, usdText } from "#contract/mils.ts";
import { alwaysWarm, warmTriggers } from "#economics/always-warm.ts";
import { costOf, PUBLISHED, publishedUse, type PoolUse } from "#economics/cost.ts";
import { checkFloor } from "#economics/margin-floor.ts";
import { billOf } from "#test/support/planner-bill.ts";

const RENT = PUBLISHED.gpu_usd_per_hour;
const priced = (frames: number): PoolUse["revenue"] => mils(frames * PUBLISHED.price_mils_per_frame);
const published: PoolUse = { ...publishedUse(), revenue: priced(publishedUse().frames) };

describe("what a frame costs", () => {
  test("is $0.000105 by the published basis, of which the page rounds to $0.0001, and 79 % are left", () => {
    const cost = costOf(published, RENT);
    expect(cost.cost_usd_per_frame).toBeCloseTo(((4 + 0.7) * 3.95) / 3600 / 49, 12);
    expect(cost.cost_usd_per_frame?.toFixed(6)).toBe("0.000105");
    expect(cost.cost_usd_per_frame?.toFixed(4)).toBe(String(PUBLISHED.cost_usd_per_frame));
    expect(cost.marginal_usd_per_frame?.toFixed(5)).toBe("0.00009");
    expect(cost.margin?.toFixed(2)).toBe("0.79");
    expect(Math.abs((cost.margin ?? 0) - PUBLISHED.margin)).toBeLessThan(0.02);
  });

  test("is all the rent, wherever it went: idle seconds and cold starts are paid by the frames, too", () => {
    const times = fc.double({ min: 0, max: 1e7, noNaN: true });
    fc.assert(
      fc.property(times, times, times, fc.integer({ min: 1, max: 1e9 }), (working_s, starting_s, idle_s, frames) => {
        const use = { ...published, working_s, starting_s, idle_s, frames, revenue: priced(frames) };
        const cost = costOf(use, RENT);
        expect(cost.working_usd + cost.starting_usd + cost.idle_usd).toBeCloseTo(cost.rent_usd, 4);
        expect((cost.cost_usd_per_frame ?? 0) * frames).toBeCloseTo(cost.rent_usd, 4);
        expect(cost.marginal_usd_per_frame).toBeLessThanOrEqual(cost.cost_usd_per_frame ?? 0);
        expect(cost.margin).toBeCloseTo(1 - cost.rent_usd / cost.revenue_usd, 4);
      }),
    );
  });

  test("is unknown where nothing was delivered, though the rent is paid", () => {
    const cost = costOf({ ...published, frames: 0, revenue: mils(0) }, RENT);
    expect(cost).toMatchObject({ cost_usd_per_frame: null, marginal_usd_per_frame: null, margin: null });
    expect(cost.rent_usd).toBeCloseTo((470 * 3.95) / 3600, 9);
    expect(checkFloor(cost, RENT)).toEqual({ kind: "no revenue", rent_usd: cost.rent_usd });
  });

  test.each([{ idle_s: -1 }, { working_s: Number.NaN }, { frames: 1.5 }])("%o is refused", (wrong) => {
    expect(() => costOf({ ...published, ...wrong }, RENT)).toThrow(/expected/);
  });
});

describe("the margin floor", () => {
  test("is not in sight by the published basis", () => {
    expect(checkFloor(costOf(published, RENT), RENT)).toMatchObject({ kind: "healthy" });
  });

  test("raises the alarm beyond 30 % cost and not at it", () => {
    // 4,900 frames earn $2.45, of which $0.735 may be rent.
    const at = (rent_usd: number): string =>
      checkFloor(costOf({ ...published, starting_s: 0, working_s: (rent_usd / RENT) * 3600 }, RENT), RENT).kind;
    expect(at(0.7349)).toBe("healthy");
    expect(at(0.7351)).toBe("below the floor");
    const exact = { ...costOf(published, RENT), margin: 0.7 };
    expect(checkFloor(exact, RENT).kind).toBe("healthy");
  });

  test("each way out of the alarm leads back to the floor", () => {
    const idle = { ...published, idle_s: 10 * 60 };
    const check = checkFloor(costOf(idle, RENT), RENT);
    if (check.kind !== "below the floor") throw new Error(`the pool is ${check.kind}`);
    expect(check.options.map(({ way }) => way)).toEqual(["re-optimise the engine", "pay less rent", "raise the price"]);
    for (const option of check.options) {
      const share = option.way === "re-optimise the engine" ? option.seconds_share : 1;
      const rent = option.way === "pay less rent" ? option.gpu_usd_per_hour : RENT;
      const price = option.way === "raise the price" ? option.price_mils_per_frame : PUBLISHED.price_mils_per_frame;
      const after = costOf(
        {
          ...idle,
          working_s: idle.working_s * share,
          starting_s: idle.starting_s * share,
          idle_s: idle.idle_s * share,
          revenue: mils(idle.frames * price),
        },
        rent,
      );
      expect(after.margin).toBeGreaterThanOrEqual(0.7 - 1e-9);
    }
    // One mil less would not do.
    expect(check.options.at(-1)).toEqual({ way: "raise the price", price_mils_per_frame: 8, notice_days: 30 });
  });
});

test("always warm costs about $2,840 a month and pays from 5.68 M frames on; both follow from rent and price", () => {
  expect(alwaysWarm(RENT, PUBLISHED.price_mils_per_frame)).toEqual({
    rent_usd_per_month: expect.closeTo(2_844, 6),
    quoted_rent_usd_per_month: 2_840,
    break_even_frames: 5_680_000,
  });
  expect(alwaysWarm(2 * RENT, 2 * PUBLISHED.price_mils_per_frame).break_even_frames).toBe(5_690_000);
  expect(() => alwaysWarm(RENT, 0)).toThrow(/expected a rent and a price/);
});

describe("the triggers for keeping a worker warm", () => {
  const now = new Date("2026-11-22T12:00:00Z");
  const facts = { complaints: [], commitments: [], gap_frames: 0, break_even_frames: 5_680_000 };
  const met = (changed: Partial<Parameters<typeof warmTriggers>[0]>): string[] =>
    warmTriggers({ ...facts, ...changed }, now).flatMap(({ trigger, met }) => (met ? [trigger] : []));
  const complaint = { customer: "cus_a", paying: true, note: "ticket 17", at: now };
  const commitment = { customer: "cus_a", frames_per_month: 2_000_001, asks_warm: true, until: new Date("2027-01-01") };

  test("are each met by what the policy says, and not by a little less", () => {
    expect(met({})).toEqual([]);
    expect(met({ complaints: [complaint] })).toEqual(["complaint"]);
    expect(met({ complaints: [{ ...complaint, paying: false }] })).toEqual([]);
    expect(met({ gap_frames: 5_680_000 })).toEqual(["gap-frames"]);
    expect(met({ gap_frames: 5_679_999 })).toEqual([]);
    expect(met({ commitments: [commitment] })).toEqual(["commitment"]);
    for (const less of [{ frames_per_month: 2_000_000 }, { asks_warm: false }, { until: now }]) {
      expect(met({ commitments: [{ ...commitment, ...less }] })).toEqual([]);
    }
    // Many customers who commit to little are no large one.
    expect(
      met({ commitments: Array.from({ length: 3 }, () => ({ ...commitment, frames_per_month: 1_999_999 })) }),
    ).toEqual([]);
  });

  test("say what decided", () => {
    const said = warmTriggers({ ...facts, complaints: [complaint], gap_frames: 1_234_567 }, now).map(
      ({ because }) => because,
    );
    expect(said).toEqual([
      "cus_a complained on 2026-11-22: ticket 17",
      "1,234,567 frames of requests that came to a cold pool this month, of 5,680,000 whose price is the rent",
      "nobody has committed to frames and asked for a warm pool",
    ]);
  });
});

test("a planner's hour: eight candidates, ten decisions a second, 14,112,000 frames, $7,056, 7.4 times the bare GPU time", () => {
  const bill = billOf({ k: 8, frames: 49, decisions_per_s: 10, seconds: 3_600 }, PUBLISHED.price_mils_per_frame);
  expect(bill).toEqual({ frames: 14_112_000n, charge: 70_560_000n });
  expect(usdText(bill.charge)).toBe("7056.0000");
  // Run on one's own accelerators at the page's 3 s a rollout.
  const own = costOf(
    { ...published, frames: 14_112_000, revenue: bill.charge, working_s: (14_112_000 / 49) * 3, starting_s: 0 },
    RENT,
  );
  expect(own.rent_usd).toBeCloseTo(948, 6);
  expect((own.revenue_usd / own.rent_usd).toFixed(1)).toBe("7.4");
});
