import { randomBytes } from "node:crypto";

import { expect, test } from "vitest";

import { jobIdOf, newCustomerId, newKeyId, newRequestId, newRolloutId, parseRolloutId } from "#contract/ids.ts";

test("ids have the forms that the wire and the database expect", () => {
  expect(newRolloutId(randomBytes)).toMatch(/^rollout_[0-9a-f]{32}$/);
  expect(newCustomerId(randomBytes)).toMatch(/^cus_[0-9a-f]{16}$/);
  expect(newKeyId(randomBytes)).toMatch(/^key_[0-9a-f]{16}$/);
  expect(newRequestId(randomBytes)).toMatch(/^req_[0-9a-f]{24}$/);
});

test("the same randomness gives the same id", () => {
  expect(newRolloutId((size) => new Uint8Array(size).fill(0xab))).toBe(`rollout_${"ab".repeat(16)}`);
});

test("reads back a rollout id and nothing else", () => {
  const id = newRolloutId(randomBytes);
  expect(parseRolloutId(id)).toBe(id);
  for (const text of ["", "rollout_", `${id}0`, id.toUpperCase(), ` ${id}`, `${id}\n`, id.replace("rollout", "cus")]) {
    expect([text, parseRolloutId(text)]).toEqual([text, null]);
  }
});

test("a job id names rollout and attempt in characters that BullMQ takes", () => {
  const jobId = jobIdOf(newRolloutId(randomBytes), 3);
  expect(jobId).toMatch(/^rollout_[0-9a-f]{32}-3$/);
});
