/** Random histories, and how many of them are run side by side. A failing one is replayed by FC_SEED and FC_PATH. */
import * as fc from "fast-check";

import type { Outcome } from "#contract/jobs.ts";
import { expired, failed, succeeded } from "#test/support/ledger.ts";

import {
  DISPUTE_CENTS,
  DISPUTE_STATES,
  type Operation,
  REFUND_CENTS,
  REFUND_STATES,
  TOPUP_CENTS,
} from "./auditor-model.ts";
import type { DatabaseFault } from "./database-faults.ts";

export const CUSTOMERS = 2;
export const KEYS = 2;
/** What each customer has to begin with, in mils; granted as payment 99. */
export const STARTING_CREDIT = 700;

const framesDelivered = fc.integer({ min: 0, max: 120 });
const outcomes: fc.Arbitrary<Outcome> = fc.oneof(
  framesDelivered.filter((frames) => frames > 0).map((frames) => succeeded(frames)),
  framesDelivered.map((frames) => failed(frames)),
  framesDelivered.map((frames): Outcome => ({ kind: "cancelled", frames_delivered: frames })),
  fc.constant(expired),
);
const customer = fc.nat({ max: CUSTOMERS - 1 });
const amount = fc.oneof(fc.constantFrom(245, 500), fc.integer({ min: 1, max: 1_500 }));
/** Now and then one that has to be minted first. */
const key = fc.oneof({ arbitrary: fc.nat({ max: KEYS - 1 }), weight: 5 }, { arbitrary: fc.constant(KEYS), weight: 1 });
const rollout = fc.nat({ max: 5 });
const is = <const T extends string>(what: T): fc.Arbitrary<T> => fc.constant(what);

/** Small ranges, so that operations meet: the same payment, idempotency key, payload and rollout again and again. */
const grant = fc.record({ do: is("grant"), customer, payment: fc.nat({ max: 9 }), amount });
const accept = fc.record({
  do: is("accept"),
  customer,
  key,
  k: fc.integer({ min: 1, max: 3 }),
  actions: fc.constantFrom(12, 24, 48),
  idempotency: fc.option(fc.nat({ max: 3 })),
  payload: fc.nat({ max: 1 }),
});
const dispatch = fc.record({ do: is("dispatch"), rollout });
const settle = fc.record({
  do: is("settle"),
  rollout,
  attempt: fc.constantFrom(null, null, 0, 1, 2),
  outcome: outcomes,
});
/** Often more than there is, so that debt comes of it. */
const clawed = fc.integer({ min: 1, max: 4_000 });
const clawBack = fc.record({ do: is("claw back"), customer, payment: fc.nat({ max: 9 }), amount: clawed });
const reinstate = fc.record({ do: is("reinstate"), customer, payment: fc.nat({ max: 9 }), amount });
const adjust = fc.record({
  do: is("adjust"),
  customer,
  amount: fc.integer({ min: -1_500, max: 1_500 }).filter((mils) => mils !== 0),
});
const mint = fc.record({ do: is("mint"), customer });
const revoke = fc.record({ do: is("revoke"), customer, key });
const expire = fc.record({ do: is("expire"), customer, key });
const price = fc.record({ do: is("price"), customer, mils: fc.constantFrom(null, 0, 3, 5, 8) });

/** In any order, and again and again. */
const event = fc.record({
  do: is("event"),
  customer,
  payment: fc.nat({ max: TOPUP_CENTS.length - 1 }),
  says: fc.oneof(
    fc.record({
      session: fc.constantFrom("paid" as const, "paid" as const, "expired" as const, "async failed" as const),
    }),
    fc.record({ refunded_cents: fc.nat({ max: 30 }) }),
    fc.record({ refund: fc.nat({ max: REFUND_CENTS.length - 1 }), state: fc.constantFrom(...REFUND_STATES) }),
    fc.record({ dispute: fc.nat({ max: DISPUTE_CENTS.length - 1 }), state: fc.constantFrom(...DISPUTE_STATES) }),
  ),
  copy: fc.nat({ max: 1 }),
});

const operations: fc.Arbitrary<Operation> = fc.oneof(
  { arbitrary: grant, weight: 4 },
  { arbitrary: accept, weight: 14 },
  { arbitrary: dispatch, weight: 6 },
  { arbitrary: settle, weight: 8 },
  { arbitrary: clawBack, weight: 2 },
  { arbitrary: reinstate, weight: 1 },
  { arbitrary: event, weight: 6 },
  { arbitrary: adjust, weight: 2 },
  { arbitrary: mint, weight: 1 },
  // Rare, else most histories would be of customers who may do nothing.
  { arbitrary: fc.oneof(revoke, expire), weight: 1 },
  { arbitrary: price, weight: 2 },
);

const faults: fc.Arbitrary<DatabaseFault> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: is("connection"),
      at: fc.oneof(fc.constant("commit" as const), fc.nat({ max: 5 })),
      fault: fc.constantFrom("cut before" as const, "cut after" as const, "cut during" as const),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: is("error"),
      at: fc.constantFrom("insert" as const, "commit" as const),
      sqlstate: fc.constantFrom("40001", "40P01", "57014"),
      times: fc.constantFrom(1, 1, 2, 100),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: is("locked") }) },
);

export interface Step {
  readonly operation: Operation;
  readonly fault: DatabaseFault | null;
}
const steps: fc.Arbitrary<Step> = fc.record({ operation: operations, fault: fc.option(faults, { freq: 7 }) });
/** `size`: as long as they may be, and not as short as fast-check likes to begin; shrinking makes them short again. */
export const sequentialHistories = fc.array(steps, { minLength: 1, maxLength: 34, size: "max" });

/** What runs at once, and the one fault that it meets. */
export interface Round {
  readonly operations: readonly Operation[];
  readonly fault: DatabaseFault | null;
}
// Prices stay, so that a charge tells what was asked.
const concurrentOperations: fc.Arbitrary<Operation> = fc.oneof(
  { arbitrary: grant, weight: 3 },
  { arbitrary: accept, weight: 12 },
  { arbitrary: dispatch, weight: 4 },
  { arbitrary: settle, weight: 6 },
  { arbitrary: clawBack, weight: 2 },
  { arbitrary: event, weight: 4 },
  { arbitrary: adjust, weight: 2 },
  { arbitrary: fc.oneof(mint, revoke), weight: 1 },
);
const rounds: fc.Arbitrary<Round> = fc.record({
  operations: fc.array(concurrentOperations, { minLength: 2, maxLength: 14, size: "max" }),
  fault: fc.option(faults, { freq: 2 }),
});
export const concurrentHistories = fc.array(rounds, { minLength: 1, maxLength: 3, size: "max" });

/**
 * `runs` histories on `lanes` lanes at once, each lane with a seed of its own; `open` makes what a lane needs. With
 * FC_SEED one lane runs that seed, with FC_PATH only that history of it.
 */
export async function assertHistories<History, Lane>(options: {
  readonly histories: fc.Arbitrary<History>;
  readonly runs: number;
  readonly lanes: readonly Lane[];
  readonly check: (lane: Lane, history: History) => Promise<void>;
  /** Stops at the first failing history, without looking for a smaller one. */
  readonly endOnFailure?: boolean;
}): Promise<void> {
  const { histories, runs, check, endOnFailure = false } = options;
  const { FC_SEED: seed, FC_PATH: path } = process.env;
  const first = seed === undefined ? Math.floor(Math.random() * 2 ** 30) : Number(seed);
  const seeds = seed === undefined ? options.lanes.map((_, index) => first + index) : [first];
  // All to their ends: a lane that went on would get in the way of the next test.
  const ended = await Promise.allSettled(
    seeds.map(async (laneSeed) => {
      // By the seed, so that a replay gets the same one.
      const lane = options.lanes[laneSeed % options.lanes.length];
      if (lane === undefined) throw new Error("there is no lane to run on");
      const property = fc.asyncProperty(histories, (history) => check(lane, history));
      const result = await fc.check(property, {
        seed: laneSeed,
        numRuns: Math.ceil(runs / options.lanes.length),
        // Smaller counterexamples are worth a minute, not a run's whole time.
        interruptAfterTimeLimit: 170_000,
        endOnFailure,
        ...(path === undefined ? {} : { path, numRuns: 1, endOnFailure: true }),
      });
      if (!result.failed) return;
      const replay = `FC_SEED=${result.seed} FC_PATH=${result.counterexamplePath}`;
      throw new Error(`A history fails. Replay it with ${replay}\n${fc.defaultReportMessage(result) ?? ""}`, {
        cause: result.errorInstance,
      });
    }),
  );
  for (const lane of ended) if (lane.status === "rejected") throw lane.reason;
}
