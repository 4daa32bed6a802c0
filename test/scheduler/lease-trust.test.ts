import { expect, test } from "vitest";

import { createLeaseTrust } from "#scheduler/sweep/lease-trust.ts";

const LEASE_MS = 15_000;

/** Whether leases are judged at each of the rounds that end well at these seconds. */
function judgedAt(seconds: readonly number[]): boolean[] {
  const trust = createLeaseTrust(LEASE_MS, 0);
  return seconds.map((second) => {
    const steady = trust.isSteady(second * 1_000);
    trust.roundEnded(second * 1_000);
    return steady;
  });
}

const rounds = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, i) => from + i);

test("leases are judged once gateways had a lease's time to renew them", () => {
  expect(judgedAt(rounds(1, 16)).lastIndexOf(false) + 1).toBe(14);
});

test("after an interruption they get that time again", () => {
  const seconds = [...rounds(1, 20), ...rounds(40, 56)];
  const judged = judgedAt(seconds);
  expect(seconds.filter((_, i) => judged[i])).toEqual([...rounds(15, 20), 55, 56]);
});

test("an interruption in the middle of a round counts as one", () => {
  const trust = createLeaseTrust(LEASE_MS, 0);
  for (const second of rounds(1, 20)) {
    trust.isSteady(second * 1_000);
    trust.roundEnded(second * 1_000);
  }
  expect(trust.isSteady(21_000)).toBe(true);
  trust.roundEnded(81_000); // slept within it
  const judged = rounds(82, 97).filter((second) => {
    const steady = trust.isSteady(second * 1_000);
    trust.roundEnded(second * 1_000);
    return steady;
  });
  expect(judged).toEqual([96, 97]);
});

test("a round that failed counts as none", () => {
  const trust = createLeaseTrust(LEASE_MS, 0);
  for (const second of rounds(1, 20)) {
    trust.isSteady(second * 1_000);
    trust.roundEnded(second * 1_000);
  }
  for (const second of rounds(21, 40)) trust.isSteady(second * 1_000);
  expect(trust.isSteady(41_000)).toBe(false);
});
