/**
 * A key is found by the SHA-256 of all of it, so the time of a look-up tells nothing about how much of a guess is right:
 * what is compared byte by byte is a hash that a caller cannot steer. The structure first, then the stopwatch.
 */
import { readFileSync } from "node:fs";

import { afterAll, beforeAll, expect, test } from "vitest";

import { authenticate, type CreatedKey } from "#keys/keys.ts";
import { mintToken, readToken } from "#keys/token.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let key: CreatedKey;
beforeAll(async () => {
  database = await createTestDatabase();
  key = await newCustomer(database.db);
});
afterAll(() => database.drop());

test("the database sees the hash of a key, never the key, and keeps nothing else of it", async () => {
  const seen: unknown[] = [];
  const spy: Pick<Database, "query"> = {
    query: (text, params) => {
      seen.push(text, params);
      return database.db.query(text, params);
    },
  };
  await authenticate(spy, key.api_key, systemClock);
  const read = readToken(key.api_key);
  expect(read.ok && JSON.stringify(seen).includes(JSON.stringify(read.hash))).toBe(true);
  expect(JSON.stringify(seen)).not.toContain(key.api_key.slice(12));

  const rows = await database.db.query<{ row: string }>(`SELECT k::text AS row FROM api_keys k`);
  for (const { row } of rows) expect(row).not.toContain(key.api_key.slice(12));
});

test("one bit of a key more or less gives a hash that has nothing in common with the right one", () => {
  const common = Array.from({ length: 200 }, (_, n) => {
    const bytes = (extra: number) => (size: number) =>
      Uint8Array.from({ length: size }, (_unused, i) => i * 7 + n + (i === size - 1 ? extra : 0));
    const [a, b] = [mintToken(bytes(0)).hash, mintToken(bytes(1)).hash];
    return [...a].filter((byte, at) => byte === b[at]).length;
  });
  // Two random hashes share 32/256 bytes on average.
  expect(common.reduce((sum, one) => sum + one, 0) / common.length).toBeLessThan(1);
});

test.each([
  ["src/platform/same-secret.ts", "timingSafeEqual"],
  ["src/rollouts/signed-url.ts", "timingSafeEqual"],
  ["src/gateway/plugins/dashboard-session.ts", "timingSafeEqual"],
  ["src/gateway/plugins/operator.ts", "isSameSecret(given, token)"],
  ["scheduler/scaling/fleet/kubernetes-endpoint.ts", "isSameSecret("],
  // What else takes the operator's token leaves it to these.
  ["src/gateway/routes/metrics.ts", "checkOperator("],
])("secrets are compared in constant time wherever one is compared and not looked up: %s", (file, what) => {
  expect(readFileSync(file, "utf8")).toContain(what);
});

const median = (times: readonly number[]): number => times.toSorted((a, b) => a - b)[times.length >> 1] ?? 0;

test("a guess with 35 of 36 characters right takes as long as one with none", async () => {
  const { db } = database;
  // Valid tokens that nobody has: the checksum fits, so both ask the database.
  const near = mintToken(() => Uint8Array.from({ length: 36 }, (_, i) => (i === 35 ? 1 : 0))).token;
  const far = mintToken(() => Uint8Array.from({ length: 36 }, (_, i) => (i * 11 + 5) & 31)).token;
  const zero = mintToken(() => new Uint8Array(36));
  await db.query(`INSERT INTO api_keys (id, customer_id, key_hash, prefix) VALUES ('key_zero', $1, $2, $3)`, [
    key.customer_id,
    zero.hash,
    zero.prefix,
  ]);
  const time = async (token: string): Promise<number> => {
    const started = performance.now();
    await authenticate(db, token, systemClock).catch(() => undefined); // unknown_key
    return performance.now() - started;
  };
  for (let warm = 0; warm < 50; warm++) await time(warm % 2 === 0 ? near : far);
  const [nears, fars]: number[][] = [[], []];
  // Taken in turn, so that whatever else the machine does meets both.
  for (let round = 0; round < 400; round++) {
    const [first, second] = round % 2 === 0 ? [near, far] : [far, near];
    const [a, b] = [await time(first), await time(second)];
    nears?.push(round % 2 === 0 ? a : b);
    fars?.push(round % 2 === 0 ? b : a);
  }
  const ratio = median(nears ?? []) / median(fars ?? []);
  // Generous: a comparison that stops at the first wrong character differs by nanoseconds, a second look-up by twofold.
  expect(ratio).toBeGreaterThan(0.6);
  expect(ratio).toBeLessThan(1.67);
});
