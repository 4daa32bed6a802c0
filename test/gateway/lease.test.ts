import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { startLease } from "#gateway/lease.ts";
import type { Connection } from "#platform/database.ts";
import { silentLog } from "#test/support/postgres.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** Of the sweep: a gateway that has not renewed its lease for this long is dead. */
const LEASE_MS = 15_000;

/** Answers that many statements and is silent from then on, as behind a link that went down. */
function connection(answers: number): Connection & { statements: number; closed: boolean } {
  return {
    statements: 0,
    closed: false,
    query() {
      this.statements += 1;
      return this.statements > answers ? new Promise(() => undefined) : Promise.resolve([]);
    },
    close() {
      this.closed = true;
    },
  };
}

test("a connection that dies silently is replaced long before the lease ends", async () => {
  const connections = [connection(3), connection(1), connection(Infinity)] as const;
  const left = [...connections];
  const lease = await startLease({
    connect: async () => left.shift() ?? Promise.reject(new Error("one connection too many")),
    random: (bytes) => new Uint8Array(bytes),
    log: silentLog,
  });
  await vi.advanceTimersByTimeAsync(60_000);
  const [first, second, third] = connections;
  expect([first.closed, second.closed, third.closed]).toEqual([true, true, false]);
  // Nothing is asked of a connection that failed, and the last one renews every two seconds.
  expect([first.statements, second.statements]).toEqual([4, 2]);
  expect(third.statements).toBeGreaterThanOrEqual(20);
  await lease.stop();
  expect(third.closed).toBe(true);
});

test("from a renewal that hangs to the next that counts it takes less than half a lease", async () => {
  const [first, second] = [connection(1), connection(Infinity)];
  const left = [first, second];
  const lease = await startLease({
    connect: async () => left.shift() ?? first,
    random: (bytes) => new Uint8Array(bytes),
    log: silentLog,
  });
  await vi.advanceTimersByTimeAsync(2_000);
  expect([first.statements, second.statements]).toEqual([2, 0]); // hangs from now on
  await vi.advanceTimersByTimeAsync(LEASE_MS / 2);
  expect(second.statements).toBeGreaterThan(0);
  await lease.stop();
});
