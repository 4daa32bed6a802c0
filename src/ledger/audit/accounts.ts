/** The part of the audit that looks at accounts: their chains, their sums, and who owes while he has a balance. */
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { entryHash, type HashedEntry } from "../entry-hash.ts";
import { type AuditScope, pages } from "./pages.ts";

export async function* auditAccounts(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  for await (const owner of owners(tx, scope)) yield* auditOwner(owner);
  for await (const account of accounts(tx, scope)) {
    scope.checked("accounts");
    yield* auditChain(tx, account, scope);
  }
}

interface Owner {
  readonly id: string;
  readonly balance_mils: Mils | null;
  readonly debt_mils: Mils | null;
}

/** A balance and a debt each, and never something in both. */
function* auditOwner({ id, balance_mils, debt_mils }: Owner): Generator<string> {
  if (balance_mils === null) yield `${id}: has no balance account`;
  if (debt_mils === null) yield `${id}: has no debt account`;
  if ((balance_mils ?? 0n) > 0n && (debt_mils ?? 0n) > 0n) {
    yield `${id}: has a balance of ${balance_mils} mils and owes ${debt_mils}`;
  }
}

interface Account {
  readonly customer_id: string;
  readonly account: string;
  readonly balance_mils: Mils;
  readonly seq: bigint;
  readonly head_hash: Buffer;
}

type Entry = HashedEntry & { readonly prev_hash: Buffer; readonly hash: Buffer; readonly rollout_missing: boolean };

/** One chain: no gap, no altered entry, running balances that add up, and an end that the account agrees with. */
async function* auditChain(tx: Sql, account: Account, scope: AuditScope): AsyncGenerator<string> {
  const name = `${account.customer_id}/${account.account}`;
  let seq = 0n;
  let balance: bigint = 0n;
  let head: Buffer = Buffer.alloc(0);
  let time = "";
  for await (const entry of entriesOf(tx, account)) {
    scope.checked("entries");
    const at = `${name} entry ${entry.seq}`;
    if (entry.seq !== seq + 1n) yield `${at}: follows entry ${seq}`;
    if (!entry.prev_hash.equals(head)) yield `${at}: does not continue the chain`;
    if (!entry.hash.equals(entryHash(entry.prev_hash, entry))) yield `${at}: is not what was hashed`;
    if (entry.created_at_text < time) yield `${at}: is older than the entry before it`;
    balance += entry.amount_mils;
    if (entry.balance_after_mils !== balance) {
      yield `${at}: says ${entry.balance_after_mils} mils afterwards, the entries add up to ${balance}`;
      balance = entry.balance_after_mils; // said once: what follows is judged by what stands here
    }
    if (account.account === "debt" && entry.kind !== "clawback") {
      yield `${at}: is of kind ${entry.kind}, and nothing but a clawback moves a debt`;
    }
    if (entry.rollout_missing) yield `${at}: names ${entry.rollout_id}, which does not exist`;
    seq = entry.seq;
    head = entry.hash;
    time = entry.created_at_text;
  }
  if (account.seq !== seq) yield `${name}: counts ${account.seq} entries, the last one is ${seq}`;
  if (!account.head_hash.equals(head)) yield `${name}: its head is not the hash of the last entry`;
  if (account.balance_mils !== balance) {
    yield `${name}: holds ${account.balance_mils} mils, its entries add up to ${balance}`;
  }
}

function owners(tx: Sql, { customer }: AuditScope): AsyncGenerator<Owner> {
  return pages<Owner>((after, limit) =>
    tx.query(
      `SELECT id,
              (SELECT balance_mils FROM accounts a WHERE a.customer_id = c.id AND account = 'balance') AS balance_mils,
              (SELECT balance_mils FROM accounts a WHERE a.customer_id = c.id AND account = 'debt') AS debt_mils
         FROM customers c WHERE id > $1 AND ($2::text IS NULL OR id = $2) ORDER BY id LIMIT $3`,
      [after?.id ?? "", customer, limit],
    ),
  );
}

function accounts(tx: Sql, { customer }: AuditScope): AsyncGenerator<Account> {
  return pages<Account>((after, limit) =>
    tx.query(
      `SELECT customer_id, account, balance_mils, seq, head_hash FROM accounts
        WHERE (customer_id, account) > ($1, $2) AND ($3::text IS NULL OR customer_id = $3)
        ORDER BY customer_id, account LIMIT $4`,
      [after?.customer_id ?? "", after?.account ?? "", customer, limit],
    ),
  );
}

function entriesOf(tx: Sql, { customer_id, account }: Account): AsyncGenerator<Entry> {
  return pages<Entry>((after, limit) =>
    tx.query(
      `SELECT customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail,
              to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at_text,
              prev_hash, hash,
              rollout_id IS NOT NULL AND (SELECT id FROM rollouts r WHERE r.id = e.rollout_id) IS NULL AS rollout_missing
         FROM ledger_entries e WHERE customer_id = $1 AND account = $2 AND seq > $3 ORDER BY seq LIMIT $4`,
      [customer_id, account, after?.seq ?? 0n, limit],
    ),
  );
}
