/** What must not change when a request is refused. */
import { balanceOf } from "#ledger/ledger.ts";

import type { TestGateway } from "./test-gateway.ts";

export interface Books {
  readonly balance: bigint;
  readonly rollouts: number;
  readonly entries: number;
  readonly idempotency_keys: number;
  readonly blobs: number;
}

export async function booksOf({ db, blobs }: TestGateway, customerId: string): Promise<Books> {
  const count = async (table: string): Promise<number> => {
    const [row] = await db.query<{ count: number }>(`SELECT count(*)::int AS count FROM ${table}`);
    return row?.count ?? 0;
  };
  let stored = 0;
  for await (const _blob of blobs.list("")) stored += 1;
  return {
    balance: await balanceOf(db, customerId),
    rollouts: await count("rollouts"),
    entries: await count("ledger_entries"),
    idempotency_keys: await count("idempotency_keys"),
    blobs: stored,
  };
}

/** Waits for a condition; throws with what it last was. */
export async function eventually<T>(look: () => Promise<T>, holds: (value: T) => boolean): Promise<T> {
  const until = Date.now() + 10_000;
  for (;;) {
    const value = await look();
    if (holds(value)) return value;
    if (Date.now() > until) throw new Error(`did not come true: ${JSON.stringify(value, showBigints)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const showBigints = (_key: string, value: unknown): unknown => (typeof value === "bigint" ? String(value) : value);
