/**
 * The auditor: recomputes every account from its entries alone and compares the rollouts with them. It trusts none of
 * the code that writes: chains are hashed here, sums are added here, the rules of a rollout's money are stated again.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { RolloutStatus } from "#contract/rollout.ts";
import type { Database, Sql } from "#platform/database.ts";

import { entryHash, type HashedEntry } from "./entry-hash.ts";

/** Rows held in memory at once. */
const PAGE_ROWS = 2_000;
/** After so many problems the books are broken enough; a list without end would help nobody. */
const PROBLEMS_MAX = 1_000;

/** Every disagreement as a sentence; none when the books balance. Reads one snapshot, so it may run at any time. */
export function verifyLedger(db: Database): Promise<string[]> {
  return db.transaction(async (tx) => {
    await tx.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    const problems: string[] = [];
    for await (const problem of disagreements(tx)) {
      problems.push(problem);
      if (problems.length === PROBLEMS_MAX) break;
    }
    return problems;
  });
}

async function* disagreements(tx: Sql): AsyncGenerator<string> {
  for await (const account of accounts(tx)) yield* auditAccount(tx, account);
  for await (const rollout of rolloutsWithMoney(tx)) yield* auditRollout(rollout);
}

interface Account {
  readonly customer_id: string;
  readonly account: string;
  readonly balance_mils: Mils;
  readonly seq: bigint;
  readonly head_hash: Buffer;
}

type Entry = HashedEntry & { readonly prev_hash: Buffer; readonly hash: Buffer };

/** One chain: no gap, no altered entry, running balances that add up, and an end that the account agrees with. */
async function* auditAccount(tx: Sql, account: Account): AsyncGenerator<string> {
  const name = `${account.customer_id}/${account.account}`;
  let seq = 0n;
  let balance = 0n;
  let head: Buffer = Buffer.alloc(0);
  let time = "";
  for await (const entry of entriesOf(tx, account)) {
    const at = `${name} entry ${entry.seq}`;
    if (entry.seq !== seq + 1n) yield `${at}: follows entry ${seq}`;
    if (!entry.prev_hash.equals(head)) yield `${at}: does not continue the chain`;
    if (!entry.hash.equals(entryHash(entry.prev_hash, entry))) yield `${at}: is not what was hashed`;
    if (entry.created_at_text < time) yield `${at}: is older than the entry before it`;
    balance += entry.amount_mils;
    if (entry.balance_after_mils !== balance) {
      yield `${at}: says ${entry.balance_after_mils} mils afterwards, the entries add up to ${balance}`;
    }
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

interface RolloutMoney {
  readonly id: RolloutId;
  readonly customer_id: string;
  readonly status: RolloutStatus;
  readonly frames: number;
  readonly frames_delivered: number | null;
  readonly price_mils_per_frame: number;
  readonly charge_mils: Mils;
  readonly refunded_mils: Mils;
  /** Of its ledger entries; `strays` are those of another customer or kind. */
  readonly debits: bigint;
  readonly debited: bigint;
  readonly refunds: bigint;
  readonly refunded: bigint;
  readonly strays: bigint;
}

/** Charged once, what its frames cost; refunded at most once, what was not delivered, and not before its end. */
function* auditRollout(r: RolloutMoney): Generator<string> {
  const charge = BigInt(r.frames) * BigInt(r.price_mils_per_frame);
  if (r.charge_mils !== charge) yield `${r.id}: charged ${r.charge_mils} mils, its frames cost ${charge}`;
  if (r.debits !== 1n || r.debited !== -charge) {
    yield `${r.id}: ${r.debits} debits of ${r.debited} mils in the ledger, expected one of ${-charge}`;
  }
  const ended = r.status !== "queued" && r.status !== "dispatched";
  if (ended !== (r.frames_delivered !== null))
    yield `${r.id}: is ${r.status} with ${r.frames_delivered} frames delivered`;
  const due = ended ? charge - BigInt(r.frames_delivered ?? 0) * BigInt(r.price_mils_per_frame) : 0n;
  if (r.refunded_mils !== due)
    yield `${r.id}: is ${r.status} and says ${r.refunded_mils} mils refunded, due are ${due}`;
  if (r.refunds !== (due > 0n ? 1n : 0n) || r.refunded !== due) {
    yield `${r.id}: ${r.refunds} refunds of ${r.refunded} mils in the ledger, due are ${due}`;
  }
  if (r.strays > 0n) yield `${r.id}: ${r.strays} ledger entries of another customer or kind name it`;
}

function accounts(tx: Sql): AsyncGenerator<Account> {
  return pages<Account>((after) =>
    tx.query(
      `SELECT customer_id, account, balance_mils, seq, head_hash FROM accounts
          WHERE (customer_id, account) > ($1, $2) ORDER BY customer_id, account LIMIT $3`,
      [after?.customer_id ?? "", after?.account ?? "", PAGE_ROWS],
    ),
  );
}

function entriesOf(tx: Sql, { customer_id, account }: Account): AsyncGenerator<Entry> {
  return pages<Entry>((after) =>
    tx.query(
      `SELECT customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail,
                to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at_text,
                prev_hash, hash
           FROM ledger_entries WHERE customer_id = $1 AND account = $2 AND seq > $3 ORDER BY seq LIMIT $4`,
      [customer_id, account, after?.seq ?? 0n, PAGE_ROWS],
    ),
  );
}

function rolloutsWithMoney(tx: Sql): AsyncGenerator<RolloutMoney> {
  return pages<RolloutMoney>((after) =>
    tx.query(
      `SELECT r.id, r.customer_id, r.status, r.frames, r.frames_delivered, r.price_mils_per_frame, r.charge_mils,
                r.refunded_mils, e.*
           FROM (SELECT * FROM rollouts WHERE id > $1 ORDER BY id LIMIT $2) r
          CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE ours AND kind = 'debit') AS debits,
                   coalesce(sum(amount_mils) FILTER (WHERE ours AND kind = 'debit'), 0)::bigint AS debited,
                   count(*) FILTER (WHERE ours AND kind = 'refund') AS refunds,
                   coalesce(sum(amount_mils) FILTER (WHERE ours AND kind = 'refund'), 0)::bigint AS refunded,
                   count(*) FILTER (WHERE NOT ours OR kind NOT IN ('debit', 'refund')) AS strays
              FROM (SELECT *, customer_id = r.customer_id AND account = 'balance' AS ours
                      FROM ledger_entries WHERE rollout_id = r.id) entries
          ) e
          ORDER BY r.id`,
      [after?.id ?? "", PAGE_ROWS],
    ),
  );
}

/** Row after row, a page at a time; `read` gets the last row of the page before. */
async function* pages<Row>(read: (after: Row | undefined) => Promise<Row[]>): AsyncGenerator<Row> {
  let after: Row | undefined;
  for (;;) {
    const page = await read(after);
    yield* page;
    after = page.at(-1);
    if (page.length < PAGE_ROWS) return;
  }
}
