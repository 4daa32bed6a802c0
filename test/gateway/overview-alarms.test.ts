/** What an operator is alarmed by, and what leaves it calm. */
import { expect, test } from "vitest";

import { alarmsOf } from "#gateway/overview/alarms.ts";
import type { Overview } from "#gateway/overview/overview.ts";

type Seen = Omit<Overview, "alarms">;

const POOL: Seen["pools"][number] = {
  model: "m",
  name: "M",
  state: "warm",
  why: "nothing waits, and the worker is needed",
  reason_kind: "busy",
  desired: 1,
  ready: 1,
  starting: 0,
  draining: 0,
  minimum: 0,
  maximum: 4,
  always_warm_workers: null,
  waiting_rollouts: 0,
  waiting_work_s: 0,
  active_samples: 0,
  capacity_samples: 8,
  cold_start_s: 70,
  scaledown_s: 60,
  crash_loop: null,
  looked_s_ago: 1,
};
const BOOKS: Seen["books"] = {
  verified_s_ago: 3_600,
  problems: 0,
  examples: [],
  unsettled: 3,
  oldest_unsettled_s: 10,
  most_overdue_s: 0,
  stripe: true,
  payments_with_problem: 0,
  reconciled_s_ago: 60,
  stripe_disagreements: 0,
  unread_events: 0,
};
const QUIET: Seen = {
  at: "2026-11-22T12:00:00.000Z",
  pools: [POOL],
  backlog: { rollouts: 0, is_more: false, customers: 0, lanes: [], largest: [] },
  dispatched: [],
  latency: { window_s: 300, lanes: [], ends: [], frames_per_s: 0, rollouts_per_s: 0 },
  refunds: { rollouts: 0, is_more: false, usd: "0.0000", by_reason: [], latest: [] },
  books: BOOKS,
  money: null,
  events: [],
};

const waiting = (oldest_s: number): Seen["backlog"] => ({
  ...QUIET.backlog,
  rollouts: 5,
  lanes: [{ model: "m", lane: "bulk", rollouts: 5, samples: 5, frames: 245, oldest_s }],
});
const ended = (last_s: number): Seen["latency"] => ({
  ...QUIET.latency,
  ends: [
    {
      model: "m",
      lane: "realtime",
      ended: 9,
      succeeded: 9,
      last_s,
      answer_ms: { p50: 1, p99: 2 },
      engine_ms: { p50: 1, p99: 2 },
    },
  ],
});
const money = (below_floor: NonNullable<Seen["money"]>["below_floor"]): Seen["money"] => ({
  month: "2026-11",
  gpu_usd_per_hour: 3.95,
  total: { model: "all pools", frames: 0, revenue_usd: 0, rent_usd: 0, cost_usd_per_frame: null, margin: null },
  pools: [],
  below_floor,
});

test.each<[string, Partial<Seen>, string[]]>([
  ["nothing", {}, []],
  ["books that differ", { books: { ...BOOKS, problems: 2, examples: ["x"] } }, ["critical books_differ"]],
  ["a charge past its deadline by a minute", { books: { ...BOOKS, most_overdue_s: 60 } }, []],
  ["and by more", { books: { ...BOOKS, most_overdue_s: 61 } }, ["critical unsettled"]],
  ["books that were never audited", { books: { ...BOOKS, verified_s_ago: null } }, []],
  ["an audit of two days ago", { books: { ...BOOKS, verified_s_ago: 172_801 } }, ["warning audit_old"]],
  ["a payment that nobody got", { books: { ...BOOKS, payments_with_problem: 1 } }, ["warning payments"]],
  ["Stripe that says otherwise", { books: { ...BOOKS, stripe_disagreements: 1 } }, ["warning payments"]],
  ["an event that cannot be read", { books: { ...BOOKS, unread_events: 1 } }, ["warning payments"]],
  ["a leader that changes", { pools: [{ ...POOL, looked_s_ago: 15 }] }, []],
  ["no leader", { pools: [{ ...POOL, looked_s_ago: 16 }] }, ["critical not_looked_at m"]],
  ["a pool before the first look", { pools: [{ ...POOL, looked_s_ago: null }] }, []],
  [
    "workers that die beside one that lives",
    { pools: [{ ...POOL, crash_loop: "exit 134" }] },
    ["warning crash_loop m"],
  ],
  ["workers that all die", { pools: [{ ...POOL, crash_loop: "exit 134", ready: 0 }] }, ["critical crash_loop m"]],
  ["a pool that would like to grow", { pools: [{ ...POOL, reason_kind: "maximum" }] }, ["notice maximum m"]],
  ["a backlog within two cold starts", { backlog: waiting(140) }, []],
  ["a backlog that waits for longer, and nothing comes out", { backlog: waiting(141) }, ["critical stuck m"]],
  ["a long backlog that moves", { backlog: waiting(9_000), latency: ended(3) }, []],
  ["one that stopped moving", { backlog: waiting(9_000), latency: ended(141) }, ["critical stuck m"]],
  [
    "one whose model starts for minutes",
    { backlog: waiting(500), latency: ended(299), pools: [{ ...POOL, cold_start_s: 400 }] },
    [],
  ],
  [
    "a busy server, of whose ends only the latest seconds are read",
    { backlog: waiting(9_000), latency: { ...ended(0.1), window_s: 4 } },
    [],
  ],
  [
    "a margin under the floor",
    { money: money([{ model: "m", margin: 0.61, floor: 0.7, ways_out: ["pay less"] }]) },
    ["warning margin m"],
  ],
  [
    "several at once, the worst first",
    {
      money: money([{ model: "m", margin: 0.61, floor: 0.7, ways_out: ["pay less"] }]),
      pools: [{ ...POOL, reason_kind: "maximum", looked_s_ago: 20 }],
      books: { ...BOOKS, problems: 1 },
    },
    ["critical books_differ", "critical not_looked_at m", "warning margin m", "notice maximum m"],
  ],
])("%s", (_name, seen, expected) => {
  const alarms = alarmsOf({ ...QUIET, ...seen });
  expect(alarms.map(({ severity, id }) => `${severity} ${id}`)).toEqual(expected);
  for (const { title, detail, hint } of alarms) {
    for (const text of [title, detail, hint]) expect(text).not.toMatch(/undefined|NaN|Infinity|null/);
    expect(hint.length).toBeGreaterThan(0);
  }
});
