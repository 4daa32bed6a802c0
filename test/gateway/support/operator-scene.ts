/** A busy hour of a server with two models, for the operator's page: everything on it is in the database, as processes write it. */
import type { RolloutId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import type { Manifest } from "#contract/manifest.ts";
import { randomBytes } from "node:crypto";
import type { CreatedKey } from "#keys/keys.ts";
import { createKey } from "#keys/keys.ts";
import { recordCheck } from "#ledger/checks.ts";
import type { Database } from "#platform/database.ts";
import { recordPoolEvent } from "#pools/events.ts";
import { addPoolHours } from "#pools/hours.ts";
import { type Pool, writePool } from "#pools/pool.ts";
import type { NewRollout, Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, dispatch, succeeded } from "#test/support/ledger.ts";

import { poolRow } from "#test/support/pools.ts";

import { ARM, PUSHER } from "./models.ts";

const named = (manifest: Manifest, slug: string, name: string): Manifest => ({
  ...manifest,
  slug,
  catalogue: { ...manifest.catalogue, name },
});
export const BUNDLES = [named(PUSHER, "dreamdojo-2b", "DreamDojo 2B"), named(ARM, "pusht-small", "PushT small")];
const [BIG, SMALL] = ["dreamdojo-2b", "pusht-small"] as const;

/** The term of the leader that writes here. */
const EPOCH = 1n;
/** A name that would be a picture with a script, if it were read as markup. */
export const MARKUP_EMAIL = `<img/src=x/onerror=document.title="taken">@example.com`;
export const MARKUP_PROMPT = `<b>push</b> <script>document.title = "taken"</script> the block`;
export const MARKUP_MESSAGE = `frame 7 of <svg onload=document.title="taken"> is not finite: "NaN" & 'inf'`;

export interface Scene {
  /** A rollout of the n-th customer. */
  readonly add: (customer: number, overrides: Partial<NewRollout>) => Promise<Rollout>;
}

export async function fillScene(db: Database): Promise<Scene> {
  await db.query("UPDATE scheduler_leader SET epoch = $1, holder = 'a test', taken_at = now()", [EPOCH]);
  const emails = ["ada@planner.example", "grace@robots.example", "lin@warehouse.example", "kay@lab.example"];
  const keys: CreatedKey[] = [];
  for (const customer of emails) {
    keys.push(await createKey(db, { customer, initial_credits: mils(50_000_000) }, randomBytes));
  }
  const keyOf = (index: number): CreatedKey => {
    const key = keys[index % keys.length];
    if (!key) throw new Error("there are keys");
    return key;
  };
  const add = (customer: number, overrides: Partial<NewRollout>) =>
    accept(db, keyOf(customer), { model: BIG, ...overrides });

  // What came out of late: some realtime with eight candidates, some bulk, each a little different.
  for (let i = 0; i < 48; i++) {
    const bulk = i % 3 === 2;
    const { id, frames } = await add(i, {
      lane: bulk ? "bulk" : "realtime",
      k: bulk ? 1 : 8,
      model: i % 4 === 3 ? SMALL : BIG,
    });
    await dispatch(db, id);
    await settle(db, id, 1, succeeded(frames, 1_400 + ((i * 37) % 23) * 60));
    await db.query("UPDATE rollouts SET created_at = finished_at - $2::float8 * interval '1 ms' WHERE id = $1", [
      id,
      bulk ? 21_000 + i * 900 : 1_700 + ((i * 53) % 29) * 90,
    ]);
  }

  // Each way to get the money back.
  const failures = [
    ["engine_failed", "frame 7 is not finite"],
    ["engine_timeout", "a single run took longer than 60 s"],
    ["lost", "the worker died twice over it"],
    ["bad_input", "actions leave the range that this model was trained on"],
  ] as const;
  for (const [index, [code, message]] of failures.entries()) {
    const { id } = await add(2 + index, { lane: "bulk" });
    await dispatch(db, id);
    await settle(db, id, 1, { kind: "failed", code, message, frames_delivered: index === 2 ? 21 : 0 });
  }
  for (let i = 0; i < 3; i++) await settle(db, (await add(i, {})).id, null, { kind: "cancelled", frames_delivered: 0 });
  await settle(db, (await add(1, { lane: "bulk" })).id, null, { kind: "expired" });

  await db.query(
    `UPDATE rollouts r SET finished_at = finished_at - minutes * interval '1 min', created_at = created_at - minutes * interval '1 min'
       FROM (SELECT id, 3 * row_number() OVER (ORDER BY finished_at DESC) - 2 AS minutes FROM rollouts WHERE refunded_mils > 0) AS ago
      WHERE ago.id = r.id`,
  );

  // At the workers. Who waits comes in `goOn`.
  for (let i = 0; i < 6; i++) await dispatch(db, (await add(i, i < 2 ? { k: 8 } : { lane: "bulk" })).id);

  const hour = new Date();
  await addPoolHours(db, EPOCH, BIG, hour, {
    starting_s: 140,
    ready_s: 2_600,
    busy_s: 2_340,
    draining_s: 8,
    cold_starts: 2,
  });
  await addPoolHours(db, EPOCH, SMALL, hour, {
    starting_s: 9,
    ready_s: 310,
    busy_s: 220,
    draining_s: 2,
    cold_starts: 3,
  });
  await recordPoolEvent(db, null, {
    model: BIG,
    kind: "complaint",
    detail: { customer: "ada@planner.example", note: "waited 70 s at eight in the morning" },
    by: "kim",
  });
  for (const [index, { desired: to, reason }] of STEPS.entries()) {
    const from = STEPS[index - 1]?.desired ?? 0;
    if (from !== to)
      await recordPoolEvent(db, EPOCH, { model: BIG, kind: "scaled", detail: { from, to, reason }, by: "scheduler" });
  }
  // Each as long ago as the history of the page says.
  const agoS = [
    3_200,
    ...STEPS.filter(({ desired }, i) => desired !== (STEPS[i - 1]?.desired ?? 0)).map(({ from }) => 600 * (1 - from)),
  ];
  await db.query(
    `UPDATE pool_events e SET at = now() - seconds * interval '1 s'
       FROM (SELECT id, ($1::float8[])[row_number() OVER (ORDER BY id)] AS seconds FROM pool_events) AS ago
      WHERE ago.id = e.id`,
    [agoS],
  );
  await recordCheck(db, []);
  await db.query("UPDATE ledger_checks SET checked_at = now() - interval '3 hours'");
  return { add };
}

/** A rollout that failed and one that waits, of a customer with markup in all its texts; the id of the first. */
export async function addMarkup(db: Database): Promise<RolloutId> {
  const key = await createKey(db, { customer: MARKUP_EMAIL, initial_credits: mils(50_000) }, randomBytes);
  const params = { seed: "7", num_steps: 8, guidance: 0, prompt: MARKUP_PROMPT };
  const { id } = await accept(db, key, { model: BIG, lane: "bulk", params });
  await dispatch(db, id);
  await settle(db, id, 1, { kind: "failed", code: "engine_failed", message: MARKUP_MESSAGE, frames_delivered: 0 });
  await accept(db, key, { model: BIG, k: 8, params });
  return id;
}

/** A moment more: a planner beside a night's work of two others; the backlog grows and is worked off. */
export async function goOn(db: Database, { add }: Scene, step: number): Promise<void> {
  const comes = Math.round(2 + 2 * Math.sin(step / 6));
  for (let i = 0; i < comes; i++) {
    const { id } = await add(step % 11 === 5 ? 3 : step % 3 === 0 ? 2 : 1, { lane: "bulk" });
    await db.query("UPDATE rollouts SET created_at = now() - $2::float8 * interval '1 s' WHERE id = $1", [
      id,
      95 - step,
    ]);
  }
  const { id, frames } = await add(0, { k: 8 });
  await dispatch(db, id);
  await settle(db, id, 1, succeeded(frames, 1_900 + ((step * 31) % 17) * 40));
  await db.query("UPDATE rollouts SET created_at = finished_at - $2::float8 * interval '1 ms' WHERE id = $1", [
    id,
    2_100 + 1_500 * Math.max(0, Math.sin(step / 5)) + ((step * 53) % 13) * 30,
  ]);
}

const WEIGHED = {
  waiting_rollouts: 90,
  work_s: 388,
  workers: 1,
  sustained_workers: 0.8,
  wall_s: 412,
  break_even_s: 140,
};

/** How the larger pool got to its size: of ten minutes, from which tenth of them on. */
const STEPS: readonly {
  from: number;
  desired: number;
  ready: number;
  starting: number;
  draining: number;
  reason: Pool["reason"];
}[] = [
  { from: 0, desired: 0, ready: 0, starting: 0, draining: 0, reason: { kind: "no_work" } },
  { from: 0.1, desired: 1, ready: 0, starting: 1, draining: 0, reason: { kind: "from_zero", start: 1, ...WEIGHED } },
  { from: 0.22, desired: 1, ready: 1, starting: 0, draining: 0, reason: { kind: "busy", workers: 1 } },
  { from: 0.4, desired: 3, ready: 1, starting: 2, draining: 0, reason: { kind: "scale_out", start: 2, ...WEIGHED } },
  { from: 0.52, desired: 3, ready: 3, starting: 0, draining: 0, reason: { kind: "busy", workers: 3 } },
  {
    from: 0.7,
    desired: 2,
    ready: 2,
    starting: 0,
    draining: 1,
    reason: { kind: "scale_in", workers: 3, peak: 2, window_s: 60 },
  },
  { from: 0.8, desired: 2, ready: 2, starting: 0, draining: 0, reason: { kind: "busy", workers: 2 } },
  {
    from: 0.92,
    desired: 3,
    ready: 2,
    starting: 1,
    draining: 0,
    reason: { kind: "scale_out", start: 1, ...WEIGHED, workers: 2, wall_s: 194 },
  },
];

/** What the scheduler would have written at that share of the ten minutes. */
export async function lookAtPools(
  db: Database,
  share: number,
  nowMs: number,
  changed: Partial<Pool> = {},
): Promise<void> {
  const looked_at = new Date(nowMs);
  const step = STEPS.findLast(({ from }) => from <= share);
  if (!step) throw new Error("the first step is from 0");
  const { from: _from, ...workers } = step;
  await writePool(
    db,
    EPOCH,
    poolRow({
      model: BIG,
      fleet: "kubernetes",
      ...workers,
      waiting_rollouts: 91,
      waiting_samples: 98,
      active_rollouts: 6,
      active_samples: Math.min(20, workers.ready * 8),
      waiting_work_s: 388,
      samples_per_worker: 16,
      seconds_per_sample: 4.1,
      looked_at,
      ...changed,
    }),
  );
  await writePool(
    db,
    EPOCH,
    poolRow({
      model: SMALL,
      fleet: "kubernetes",
      desired: 1,
      reason: { kind: "scaledown_window", peak: 1, unneeded_s: 24, window_s: 60 },
      ready: 1,
      seconds_per_sample: 0.6,
      cold_start_s: 3,
      always_warm_workers: 1,
      looked_at,
    }),
  );
}
