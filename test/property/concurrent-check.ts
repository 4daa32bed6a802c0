/**
 * What must hold when many things happen at once: there is no one right order to compare with, but every answer has to
 * be found in the books, and the books hold nothing that nobody asked for.
 */
import { expect } from "vitest";

import type { RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import type { Accepted } from "#rollouts/accept.ts";
import type { NewRollout } from "#rollouts/rollout.ts";

import { createModel, type Operation, type Snapshot } from "./auditor-model.ts";
import { type Answer, createSystem, type SystemParts } from "./auditor-system.ts";
import { type FaultyDatabase, withFault } from "./database-faults.ts";
import { CUSTOMERS, KEYS, type Round, STARTING_CREDIT } from "./histories.ts";

const PRICE = 5;

interface Asked {
  readonly operation: Operation;
  readonly answer: Answer;
  readonly round: number;
  /** Of an acceptance: the rollout that it would make. */
  readonly request: NewRollout | undefined;
  /** Of a settlement: the rollout that it meant. */
  readonly rollout: RolloutId | undefined;
}

interface EntryRow {
  readonly account: string;
  readonly seq: bigint;
  readonly kind: string;
  readonly amount: number;
  readonly after: number;
  readonly rollout: RolloutId | null;
  readonly reference: string;
  readonly detail: string;
}

export async function checkConcurrent(lane: SystemParts & FaultyDatabase, history: readonly Round[]): Promise<void> {
  const { quiet } = lane;
  // Sees every request that is made, also of those that are never answered.
  let requested: NewRollout | undefined;
  const accept = (rollout: NewRollout): Promise<Accepted> => {
    requested = rollout;
    return lane.accept(rollout);
  };
  const real = await createSystem({ ...lane, accept }, CUSTOMERS, KEYS);
  const customers = real.customers.map(({ id }) => id);
  for (let customer = 0; customer < CUSTOMERS; customer++) {
    await real.apply({ do: "grant", customer, payment: 99, amount: STARTING_CREDIT });
  }

  const asked: Asked[] = [];
  const revokedBefore: Set<string>[] = [];
  /** Numbers of the last balance entry of each customer at the beginning of each round. */
  const marks: bigint[][] = [];
  for (const [round, { operations, fault }] of history.entries()) {
    revokedBefore.push(
      new Set(
        asked.flatMap(({ operation, answer }) =>
          operation.do === "revoke" && answer === "done" ? [`${operation.customer} ${operation.key}`] : [],
        ),
      ),
    );
    marks.push(await lastNumbers());
    await withFault(lane, fault, customers, () =>
      Promise.all(
        operations.map(async (operation) => {
          requested = undefined;
          const answering = real.apply(operation); // runs up to its first wait
          const request = requested;
          const rollout = operation.do === "settle" ? real.rollouts[operation.rollout] : undefined;
          const answer = await answering;
          asked.push({ operation, answer, round, request, rollout });
        }),
      ),
    );
    await real.findLost();
  }
  marks.push(await lastNumbers());

  // Stripe repeats what was not confirmed, in whatever order; after that the order that events came in has left no trace.
  const events = asked.flatMap(({ operation }) => (operation.do === "event" ? [operation] : []));
  const model = createModel(CUSTOMERS, KEYS);
  for (const event of events) {
    expect(["done", "nothing"]).toContain(await real.apply(event));
    model.apply(event);
  }
  expect(payments(await real.snapshot())).toEqual(payments(model.snapshot()));

  async function lastNumbers(): Promise<bigint[]> {
    const rows = await quiet.query<{ id: string; seq: bigint }>(
      `SELECT customer_id AS id, seq FROM accounts WHERE customer_id = ANY ($1) AND account = 'balance'`,
      [customers],
    );
    return customers.map((id) => rows.find((row) => row.id === id)?.seq ?? 0n);
  }

  for (const [customer, id] of customers.entries()) {
    const entries = await quiet.query<EntryRow>(
      `SELECT account, seq, kind, amount_mils::int AS amount, balance_after_mils::int AS after, rollout_id AS rollout,
              reference, detail
         FROM ledger_entries WHERE customer_id = $1 ORDER BY account, seq`,
      [id],
    );
    const ofCustomer = asked.filter(({ operation }) => "customer" in operation && operation.customer === customer);
    checkBalances(entries);
    checkGrants(entries, ofCustomer);
    checkAmounts(entries, ofCustomer);
    checkRefusals(
      entries,
      ofCustomer,
      marks.map((mark) => mark[customer] ?? 0n),
    );
    for (const { operation, answer, round } of ofCustomer) {
      if (operation.do !== "accept" || !revokedBefore[round]?.has(`${customer} ${operation.key}`)) continue;
      expect({
        operation,
        answer,
        allowed: typeof answer === "string" && ["revoked", "failed", "unknown", "nothing"].includes(answer),
      }).toEqual({ operation, answer, allowed: true });
    }
  }
  await checkRollouts();

  /** Every rollout of these customers is one that was asked for, charged once, and ended as exactly one caller was told. */
  async function checkRollouts(): Promise<void> {
    const rows = await quiet.query<{
      id: RolloutId;
      status: string;
      frames: number;
      charge: number;
      refunded: number;
      fingerprint: Buffer;
      idempotency: string | null;
    }>(
      `SELECT r.id, r.status, r.frames, charge_mils::int AS charge, refunded_mils::int AS refunded, r.fingerprint,
              i.key AS idempotency
         FROM rollouts r LEFT JOIN idempotency_keys i ON i.rollout_id = r.id WHERE r.customer_id = ANY ($1)`,
      [customers],
    );
    const stored = new Map(rows.map((row) => [row.id, row]));
    const acceptances = asked.flatMap((one) => (one.request ? [{ ...one, request: one.request }] : []));
    const settlements = Map.groupBy(
      asked.filter(({ operation }) => operation.do === "settle"),
      ({ rollout }) => rollout,
    );
    for (const { request, answer } of acceptances) {
      const row = stored.get(request.id);
      if (typeof answer === "object" && "accepted" in answer) expect(row).toBeDefined();
      else if (answer !== "unknown") expect(row).toBeUndefined();
      if (typeof answer === "object" && "replayed" in answer) {
        const replayed = real.rollouts[answer.replayed];
        const original = acceptances.find((one) => one.request.id === replayed)?.request;
        expect(original?.idempotency_key).toBe(request.idempotency_key);
        expect(original?.fingerprint).toEqual(request.fingerprint);
      }
    }
    for (const row of rows) {
      const made = acceptances.find(({ request }) => request.id === row.id);
      expect(made).toBeDefined();
      expect(row.charge).toBe(row.frames * PRICE);
      const ends = settlements.get(row.id) ?? [];
      const told = ends.filter(({ answer }) => answer === "done");
      const maybe = ends.filter(({ answer }) => answer === "unknown");
      expect(told.length).toBeLessThanOrEqual(1);
      const isEnded = !["queued", "dispatched"].includes(row.status);
      if (told.length === 1) expect(isEnded).toBe(true);
      if (!isEnded) continue;
      const candidates = told.length === 1 ? told : maybe;
      const explained = candidates.some(
        ({ operation }) =>
          operation.do === "settle" &&
          operation.outcome.kind === row.status &&
          row.refunded === refundOf(row.frames, operation.outcome),
      );
      expect({ row, explained }).toEqual({ row, explained: true });
    }
  }
}

const payments = ({ customers }: Snapshot): unknown => customers.map((one) => one.payments);

function refundOf(frames: number, outcome: Outcome): number {
  const reported =
    outcome.kind === "succeeded" ? outcome.result.frames : outcome.kind === "expired" ? 0 : outcome.frames_delivered;
  return (frames - Math.min(reported, frames)) * PRICE;
}

function checkBalances(entries: readonly EntryRow[]): void {
  const sums = { balance: 0, debt: 0 };
  for (const { account, amount, after } of entries) {
    sums[account === "debt" ? "debt" : "balance"] += amount;
    expect(after).toBe(sums[account === "debt" ? "debt" : "balance"]);
    expect(after).toBeGreaterThanOrEqual(0);
  }
  expect(Math.min(sums.balance, sums.debt)).toBe(0);
}

/** Each payment once, for an amount that was asked for, and not at all only where nobody was told that it is done. */
function checkGrants(entries: readonly EntryRow[], asked: readonly Asked[]): void {
  const credits = Map.groupBy(
    entries.filter(({ kind, reference }) => kind === "credit" && reference.startsWith("grant_")),
    ({ reference }) => Number(reference.split("_").at(-1)),
  );
  const grants = Map.groupBy(
    asked.flatMap(({ operation, answer }) => (operation.do === "grant" ? [{ ...operation, answer }] : [])),
    ({ payment }) => payment,
  );
  for (const [payment, [first, ...others]] of credits) {
    expect(others).toEqual([]);
    if (payment !== 99) expect(grants.get(payment)?.map(({ amount }) => amount)).toContain(first?.amount);
  }
  for (const [payment, answered] of grants) {
    const [credited] = credits.get(payment) ?? [];
    expect(answered.filter(({ answer }) => answer === "done").length).toBeLessThanOrEqual(1);
    for (const { answer, amount } of answered) {
      if (answer === "done" || answer === "nothing") expect(credited?.amount).toBe(amount);
      if (answer === "conflict") expect(credited?.amount).not.toBe(amount);
    }
  }
}

/** Adjustments and clawbacks are in the books whole where somebody was told so, and nothing else of their kind is. */
function checkAmounts(entries: readonly EntryRow[], asked: readonly Asked[]): void {
  const adjustments = entries.filter(({ kind }) => kind === "adjustment").map(({ amount }) => amount);
  const adjusts = asked.flatMap(({ operation, answer }) =>
    operation.do === "adjust" ? [{ amount: operation.amount, answer }] : [],
  );
  expectExplained(adjustments, adjusts);

  // One clawback may be two entries: what the balance had, and the rest as debt.
  const clawed = Map.groupBy(
    entries.filter(({ detail }) => detail === "claw back"),
    ({ reference }) => reference,
  );
  const total = [...clawed.values()]
    .flat()
    .reduce((sum, { account, amount }) => sum + (account === "debt" ? amount : -amount), 0);
  const clawbacks = asked.flatMap(({ operation, answer }) =>
    operation.do === "claw back" ? [{ amount: operation.amount, answer }] : [],
  );
  const known = sum(clawbacks.filter(({ answer }) => answer === "done").map(({ amount }) => amount));
  const possible = sumsOf(clawbacks.filter(({ answer }) => answer === "unknown").map(({ amount }) => amount));
  expect([...possible].map((extra) => known + extra)).toContain(total);
}

/** `found` is every amount that is done, and some of those that nobody knows of. */
function expectExplained(found: readonly number[], asked: readonly { amount: number; answer: Answer }[]): void {
  const rest = [...found];
  for (const { amount } of asked.filter(({ answer }) => answer === "done")) {
    expect(rest).toContain(amount);
    rest.splice(rest.indexOf(amount), 1);
  }
  const unknown = asked.filter(({ answer }) => answer === "unknown").map(({ amount }) => amount);
  for (const amount of rest) {
    expect(unknown).toContain(amount);
    unknown.splice(unknown.indexOf(amount), 1);
  }
}

/** Whoever was told that the balance is too low was told so while it was, at some moment of that round. */
function checkRefusals(entries: readonly EntryRow[], asked: readonly Asked[], marks: readonly bigint[]): void {
  const balances = entries.filter(({ account }) => account === "balance");
  for (const { operation, answer, round } of asked) {
    if (answer !== "too little" || (operation.do !== "accept" && operation.do !== "adjust")) continue;
    const needed = operation.do === "accept" ? operation.k * (operation.actions + 1) * PRICE : -operation.amount;
    const [from = 0n, to = 0n] = [marks[round], marks[round + 1]];
    const lowest = Math.min(...balances.filter(({ seq }) => seq >= from && seq <= to).map(({ after }) => after));
    expect({ operation, lowest, tooLittle: lowest < needed }).toEqual({ operation, lowest, tooLittle: true });
  }
}

const sum = (amounts: readonly number[]): number => amounts.reduce((total, amount) => total + amount, 0);

/** Sums of all subsets. */
function sumsOf(amounts: readonly number[]): Set<number> {
  let sums = new Set([0]);
  for (const amount of amounts) sums = new Set([...sums].flatMap((one) => [one, one + amount]));
  return sums;
}
