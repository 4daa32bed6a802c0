/** A month as programs read it: the route's answer, and what the command prints with --json. */
import type { EconomicsMonth, MonthFigures } from "./month.ts";

export function economicsJson(month: EconomicsMonth) {
  return {
    ...month,
    from: month.from.toISOString(),
    until: month.until.toISOString(),
    pools: month.pools.map((pool) => ({ ...pool, ...milsAsNumbers(pool) })),
    total: { ...month.total, ...milsAsNumbers(month.total) },
  };
}

const milsAsNumbers = ({ revenue_mils, refunded_mils }: MonthFigures) => ({
  revenue_mils: Number(revenue_mils),
  refunded_mils: Number(refunded_mils),
});
