/**
 * Money that this process moved, counted where it knows that it did: a debit that it took, a refund that it settled.
 * A process that dies between its commit and its counter counts too little, never too much; the ledger itself is what
 * is right, and `ledger verify` and the daily totals read that.
 */
import { Counter, type Registry } from "prom-client";

import type { Mils } from "#contract/mils.ts";

export type MovedKind = "debit" | "refund" | "credit" | "clawback";

export interface MoneyMetrics {
  /** After the commit, once an entry; the sign is left out. */
  moved(kind: MovedKind, amount: Mils): void;
  /** `error`: one try to settle failed; `given_up`: the last one did, and the sweep has to settle it. */
  settlementFailed(how: "error" | "given_up"): void;
}

const MOVED = "dream_money_mils_total";
const SETTLEMENT_FAILURES = "dream_money_settlement_failures_total";

/** Counters of this registry; the parts of one process that share a registry share them. */
export function moneyMetricsOf(registry: Registry): MoneyMetrics {
  const moved =
    known<"kind">(registry, MOVED) ??
    new Counter({
      name: MOVED,
      help: "Money moved by this process in mils ($0.0001), by kind of ledger entry",
      labelNames: ["kind"],
      registers: [registry],
    });
  const failures =
    known<"how">(registry, SETTLEMENT_FAILURES) ??
    new Counter({
      name: SETTLEMENT_FAILURES,
      help: "Tries to settle a rollout that failed (error), and settlements left to the sweep (given_up)",
      labelNames: ["how"],
      registers: [registry],
    });
  return {
    moved: (kind, amount) => moved.inc({ kind }, Math.abs(Number(amount))),
    settlementFailed: (how) => failures.inc({ how }),
  };
}

function known<Label extends string>(registry: Registry, name: string): Counter<Label> | undefined {
  return registry.getSingleMetric(name) as Counter<Label> | undefined; // made above, under this name
}
