/**
 * The claims: accepting costs hardly more than the driver, and one busy customer is not bound to one disk write a debit.
 * Measured side by side in alternating rounds on the embedded PostgreSQL, as `npm start` runs it (fsync on):
 *
 *   spread   debits of many accounts, one caller a connection:
 *              bare pg   a plain client that runs the very same prepared statement (the one text for one rollout and for
 *                        many) with parameters made beforehand: what the acceptor, the pool and we add is the difference
 *              ours      the gateway's acceptor, on the same pool
 *              pgbench   the same statement from its C client, where it is installed (reported, no target)
 *   hot      debits of one account from many callers:
 *              one by one   each in a statement of its own (acceptRollout)
 *              coalesced    the acceptor
 *   idle     a single debit at a time, each of an account that nobody else uses: its latency, on a connection that is open
 *            and has planned the statement, for both
 *
 * Ratios are medians over the rounds of one round's own ratio, because a round's variants meet the same machine. The audit of all that was written ends the run. Prints
 * its tables and writes bench/results/ledger.md and .json; ends with 1 when a claim is missed. `npm run bench:ledger`
 */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { openDatabase, type Parts } from "#cli/context.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { readConfig } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { createAcceptor } from "#rollouts/acceptor.ts";

import { createPayers, ownAccounts, type Payer, rolloutsFor, statementOf } from "./debits.ts";
import { describeMachine, median } from "./machine.ts";
import { pgbenchOf } from "./pgbench.ts";

/** Many and short ones: what else the machine does then meets all variants alike. */
const ROUNDS = { spread: 41, hot: 11 } as const;
/** As many as the gateway's pool has; each caller of the spread accounts uses one. */
const CONNECTIONS = 10;
const DEBITS_PER_ROUND = { spread: 300, oneByOne: 400, coalesced: 4_000, idle: 1_000 } as const;
/** Before the clock runs: a connection is opened, and PostgreSQL plans a statement anew its first five times. */
const IDLE_WARM_UP = 20;
const HOT_CALLERS = [16, 64, 256] as const;
/** The target is for a customer who is busy enough to have this many calls waiting. */
const HOT_CALLERS_JUDGED = 64;

const SPREAD_RATIO_MIN = 0.9;
const HOT_RATIO_MIN = 5;

/** Debits a second of each round. */
type Rates = Map<string, number[]>;

const said: string[] = [];
/** To the terminal and into the report. */
function say(line: string): void {
  console.log(line);
  said.push(line);
}

async function main(): Promise<void> {
  const dataDir = await mkdtemp(join(tmpdir(), "dream-bench-ledger-"));
  const parts: Parts = [];
  const log = createLog("bench", "warn");
  try {
    const { db, url } = await openDatabase(readConfig({ DATA_DIR: dataDir }), log, parts);
    const payers = await createPayers(db, CONNECTIONS);
    const spread = await measureSpread(db, payers, await pgbenchOf(url, CONNECTIONS, dataDir));
    const hot = [];
    for (const callers of HOT_CALLERS) hot.push(await measureHot(db, payers, callers));
    const idle = await measureIdle(db, payers);
    await report(db, spread, hot, idle);
  } finally {
    await stopAll(parts, log);
    await rm(dataDir, { recursive: true, force: true });
  }
}

/** Debits a second when every caller works through its own list, one at a time. */
async function rate<T>(lists: readonly (readonly T[])[], accept: (item: T, caller: number) => Promise<unknown>) {
  const startedAt = performance.now();
  await Promise.all(
    lists.map(async (list, caller) => {
      for (const item of list) await accept(item, caller);
    }),
  );
  const count = lists.reduce((sum, list) => sum + list.length, 0);
  return (count / (performance.now() - startedAt)) * 1000;
}

/** Runs the variants in turn, in the other order every second round; the first round only warms up. */
async function alternate(
  variants: readonly (readonly [string, () => Promise<number>])[],
  { rounds, what }: { readonly rounds: number; readonly what: string },
): Promise<Rates> {
  const rates: Rates = new Map(variants.map(([name]) => [name, []]));
  for (let round = 0; round <= rounds; round++) {
    for (const [name, run] of round % 2 === 0 ? variants : variants.toReversed()) {
      const perSecond = await run();
      if (round > 0) rates.get(name)?.push(perSecond);
      process.stderr.write(`  ${what}, round ${round || "of warming up"}: ${name} ${perSecond.toFixed(0)}/s\n`);
    }
  }
  return rates;
}

const ratesOf = (rates: Rates, name: string): readonly number[] => rates.get(name) ?? [];

/** `name` ÷ `baseline` of each round. */
function ratiosOf(rates: Rates, name: string, baseline: string): number[] {
  const base = ratesOf(rates, baseline);
  return ratesOf(rates, name).map((value, round) => value / (base[round] ?? Number.NaN));
}

const ratioOf = (rates: Rates, name: string, baseline: string): number => median(ratiosOf(rates, name, baseline));

async function measureSpread(db: Database, payers: readonly Payer[], pgbench: (() => Promise<number>) | null) {
  const acceptor = createAcceptor(db);
  const lists = () => rolloutsFor(CONNECTIONS, DEBITS_PER_ROUND.spread, (caller) => ownAccounts(payers, caller));
  const bare = async (): Promise<number> => {
    const prepared = await Promise.all(lists().map((list) => Promise.all(list.map(statementOf))));
    const clients = await Promise.all(prepared.map(() => db.pool.connect()));
    try {
      return await rate(prepared, async ({ text, values }, caller) => {
        const answer = await clients[caller]?.query({ name: "bare", text, values });
        if (answer?.rows.length !== 1) throw new Error("the bare client's debit was refused");
      });
    } finally {
      for (const client of clients) client.release();
    }
  };
  const ours = (): Promise<number> => rate(lists(), (r) => acceptor.accept(r));
  return alternate([["bare pg", bare], ["ours", ours], ...(pgbench ? [["pgbench", pgbench] as const] : [])], {
    rounds: ROUNDS.spread,
    what: "many accounts",
  });
}

async function measureHot(db: Database, payers: readonly Payer[], callers: number) {
  const acceptor = createAcceptor(db);
  const hot = payers.slice(0, 1);
  const rates = await alternate(
    [
      [
        "one by one",
        () =>
          rate(
            rolloutsFor(callers, DEBITS_PER_ROUND.oneByOne, () => hot),
            (r) => acceptRollout(db, r),
          ),
      ],
      [
        "coalesced",
        () =>
          rate(
            rolloutsFor(callers, DEBITS_PER_ROUND.coalesced, () => hot),
            (r) => acceptor.accept(r),
          ),
      ],
    ],
    { rounds: ROUNDS.hot, what: `one account, ${callers} callers` },
  );
  return { callers, rates };
}

async function timed(into: number[], run: () => Promise<unknown>): Promise<void> {
  const startedAt = performance.now();
  await run();
  into.push(performance.now() - startedAt);
}

/** Milliseconds of each debit. */
async function measureIdle(db: Database, payers: readonly Payer[]) {
  const acceptor = createAcceptor(db);
  const client = await db.pool.connect();
  const times = { "bare pg": [] as number[], ours: [] as number[] };
  try {
    const [rollouts = []] = rolloutsFor(1, 2 * (IDLE_WARM_UP + DEBITS_PER_ROUND.idle), () => payers);
    for (const [n, r] of rollouts.entries()) {
      const { text, values } = await statementOf(r);
      const into = n < 2 * IDLE_WARM_UP ? { "bare pg": [], ours: [] } : times;
      // Each goes first in every second pair.
      const isBare = (n + Math.floor(n / 2)) % 2 === 0;
      if (isBare) await timed(into["bare pg"], () => client.query({ name: "bare", text, values }));
      else await timed(into.ours, () => acceptor.accept(r));
    }
  } finally {
    client.release();
  }
  return times;
}

function quantile(values: readonly number[], q: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(q * values.length)] ?? Number.NaN;
}

async function report(
  db: Database,
  spread: Rates,
  hot: readonly { readonly callers: number; readonly rates: Rates }[],
  idle: Readonly<Record<string, readonly number[]>>,
): Promise<void> {
  const missed: string[] = [];
  const machine = describeMachine();
  const [server] = await db.query<Record<string, string>>(
    `SELECT version(), current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
            current_setting('shared_buffers') AS shared_buffers, current_setting('wal_sync_method') AS wal_sync_method`,
  );
  said.push(
    "# What a debit costs",
    "",
    `Made by \`npm run bench:ledger\` (bench/ledger.ts says what is measured) on ${machine.cores} cores of ${machine.cpu}, ` +
      `Node ${machine.node}, PostgreSQL ${/[\d.]+/.exec(server?.["version"] ?? "")?.[0]} with fsync ${server?.["fsync"]}. ` +
      `Medians of ${ROUNDS.spread} and ${ROUNDS.hot} alternating rounds; ratios count, the figures are this machine's.`,
  );

  say(`\n## Many accounts, ${CONNECTIONS} connections`);
  say("");
  say("| | debits/s, median | ÷ bare pg of the same round, median | (its quartiles) | of the medians | wanted |");
  say("|---|---|---|---|---|---|");
  for (const [name, values] of spread) {
    const ratios = ratiosOf(spread, name, "bare pg");
    const quartiles = [0.25, 0.75].map((q) => quantile(ratios, q).toFixed(2)).join(" to ");
    const ofMedians = median(values) / median(ratesOf(spread, "bare pg"));
    const wanted = name === "ours" ? `≥ ${SPREAD_RATIO_MIN.toFixed(2)} in the same round` : "";
    const cells = [name, median(values).toFixed(0), median(ratios).toFixed(2), quartiles, ofMedians.toFixed(2), wanted];
    say(`| ${cells.join(" | ")} |`);
  }
  say(
    "\nAll of them run the same statement, the coalescing one with a single rollout in it: this measures what the " +
      "acceptor, the pool and the making of parameters add, not the statement. What is judged is the ratio within a " +
      "round, whose variants met the same machine; the medians of the rates are of different moments.",
  );
  if (!spread.has("pgbench")) say("\npgbench is not installed here.");
  const spreadRatio = ratioOf(spread, "ours", "bare pg");
  if (spreadRatio < SPREAD_RATIO_MIN) missed.push(`spread accounts: ${spreadRatio.toFixed(2)} of the bare client`);

  say("\n## One account");
  say("");
  say("| callers at once | one by one, debits/s | coalesced, debits/s | times, in the same round | wanted |");
  say("|---|---|---|---|---|");
  for (const { callers, rates } of hot) {
    const times = ratioOf(rates, "coalesced", "one by one");
    const judged = callers >= HOT_CALLERS_JUDGED;
    const [single, coalesced] = ["one by one", "coalesced"].map((name) => median(ratesOf(rates, name)).toFixed(0));
    say(`| ${callers} | ${single} | ${coalesced} | ${times.toFixed(1)} | ${judged ? `≥ ${HOT_RATIO_MIN}` : ""} |`);
    if (judged && times < HOT_RATIO_MIN) missed.push(`one account, ${callers} callers: ${times.toFixed(1)} times`);
  }

  say("\n## A single debit of an idle account");
  say("");
  say("| | median | 99th percentile |");
  say("|---|---|---|");
  for (const [name, times] of Object.entries(idle)) {
    say(`| ${name} | ${median(times).toFixed(2)} ms | ${quantile(times, 0.99).toFixed(2)} ms |`);
  }
  say(
    `\n${DEBITS_PER_ROUND.idle} debits each, in turn, both on an open connection that has planned the statement. A debit for which ` +
      "the pool has to open one (it closes those that were idle for 10 s) takes some tens of milliseconds more, once.",
  );

  const problems = await verifyLedger(db);
  const [count] = await db.query<{ entries: bigint }>("SELECT count(*) AS entries FROM ledger_entries");
  say(`\nThe auditor found ${problems.length} problems in the ${count?.entries} entries afterwards.`);
  if (problems.length > 0) missed.push(`the books: ${problems[0]}`);

  await mkdir("bench/results", { recursive: true });
  await writeFile("bench/results/ledger.md", `${said.join("\n")}\n`);
  const result = {
    made_by: "npm run bench:ledger",
    machine,
    server,
    rounds: ROUNDS,
    spread: { debits_per_s: Object.fromEntries(spread), ratio: spreadRatio, wanted: SPREAD_RATIO_MIN },
    hot: hot.map(({ callers, rates }) => ({
      callers,
      debits_per_s: Object.fromEntries(rates),
      ratio: ratioOf(rates, "coalesced", "one by one"),
    })),
    hot_wanted: { callers_min: HOT_CALLERS_JUDGED, ratio: HOT_RATIO_MIN },
    idle_ms: Object.fromEntries(Object.entries(idle).map(([name, times]) => [name, median(times)])),
    missed,
  };
  await writeFile("bench/results/ledger.json", `${JSON.stringify(result, null, 2)}\n`);
  for (const miss of missed) console.error(`missed: ${miss}`);
  if (missed.length > 0) process.exitCode = 1;
}

await main();
