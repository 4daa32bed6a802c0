/** Customers, rollouts and the accepting statement itself, for the benchmark of the ledger. */
import { randomBytes } from "node:crypto";

import type { CustomerId, KeyId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { createKey } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import type { NewRollout } from "#rollouts/rollout.ts";
import { tryAccepting } from "#rollouts/try-accepting.ts";
import { newRollout } from "#test/support/ledger.ts";

export const ACCOUNTS_PER_CONNECTION = 20;

export interface Payer {
  readonly customer_id: CustomerId;
  readonly key_id: KeyId;
}

/** With ids that pgbench can make, too. */
export async function createPayers(db: Database, connections: number): Promise<Payer[]> {
  const payers: Payer[] = [];
  for (let n = 0; n < connections * ACCOUNTS_PER_CONNECTION; n++) {
    const { customer_id } = await createKey(
      db,
      { customer: `cus_bench_${n}`, initial_credits: mils(10n ** 12n) },
      randomBytes,
    );
    const key_id = `key_bench_${n}` as KeyId; // as one that was minted
    await db.query("INSERT INTO api_keys (id, customer_id, key_hash, prefix) VALUES ($1, $2, $3, 'dre_bench')", [
      key_id,
      customer_id,
      randomBytes(32),
    ]);
    payers.push({ customer_id, key_id });
  }
  await db.query("VACUUM ANALYZE");
  return payers;
}

/** The accounts of one connection: no two callers ever meet at one. */
export const ownAccounts = (payers: readonly Payer[], connection: number): readonly Payer[] =>
  payers.slice(connection * ACCOUNTS_PER_CONNECTION, (connection + 1) * ACCOUNTS_PER_CONNECTION);

/** `count` rollouts, those of each caller in a list of its own, made before the clock runs. */
export function rolloutsFor(
  callers: number,
  count: number,
  payersOf: (caller: number) => readonly Payer[],
): NewRollout[][] {
  return Array.from({ length: callers }, (_, caller) => {
    const payers = payersOf(caller);
    return Array.from({ length: Math.ceil(count / callers) }, (_, n) => {
      const payer = payers[n % payers.length];
      if (!payer) throw new Error("no accounts");
      return newRollout(payer);
    });
  });
}

export interface Statement {
  readonly text: string;
  readonly values: unknown[];
}

/** What accepting this rollout alone sends to the database. */
export async function statementOf(r: NewRollout): Promise<Statement> {
  const sent: Statement[] = [];
  const recorder = {
    query: (text: string, params: readonly unknown[] = []) => {
      sent.push({ text, values: [...params] });
      return Promise.resolve([]);
    },
  };
  await tryAccepting(recorder, [r], () => undefined);
  const [statement] = sent;
  if (!statement) throw new Error("accepting sent no statement");
  return statement;
}
