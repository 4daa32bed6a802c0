import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";

import { jobIdOf, type RolloutId } from "#contract/ids.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { predictQueue } from "#queue/queues.ts";
import { tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { type DispatcherOptions, startDispatcher } from "#scheduler/dispatch/dispatcher.ts";

import { eventually } from "../queue/test-queue.ts";
import { accept, cancelled, newCustomer } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, MODEL, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
let epoch: bigint;
let resign: () => Promise<void>;

beforeAll(async () => {
  fixture = await openFixture();
  const leadership = await tryLead(fixture.database.as("scheduler"), "test");
  if (!leadership) throw new Error("somebody else leads");
  ({ epoch } = leadership);
  resign = () => leadership.resign();
});
afterAll(async () => {
  await resign();
  await fixture.end();
});

beforeEach(async () => {
  // Nothing of the tests before is left in the way.
  const { db } = fixture.database;
  const left = await db.query<{ id: RolloutId }>("SELECT id FROM rollouts WHERE finished_at IS NULL");
  for (const { id } of left) await settle(db, id, null, cancelled);
});

async function dispatching(options: Partial<DispatcherOptions>, during: () => Promise<void>): Promise<void> {
  const { database, queues, models, metrics } = fixture;
  const dispatcher: Service = await startDispatcher({
    db: database.as("scheduler"),
    queues,
    models,
    metrics,
    epoch,
    liveWorkers: () => 1,
    scoredAtOnceMax: 2,
    clock: systemClock,
    log: silentLog,
    ...options,
  });
  try {
    await during();
  } finally {
    await dispatcher.stop();
  }
}

test("gives a queued rollout to its model's queue as attempt 1, woken by the signal", async () => {
  await dispatching({}, async () => {
    const { id } = await accept(fixture.database.db, fixture.key, { lane: "bulk" });
    await fixture.queues.signals.publish({ kind: "queued" });
    const job = await eventually(() => predictQueue(fixture.queues, MODEL, "bulk").find(jobIdOf(id, 1)));
    expect(job).toMatchObject({ state: "waiting", data: { rollout_id: id, attempt: 1, debited_mils: "245" } });
    expect(await fixture.read(id)).toMatchObject({ status: "dispatched", attempt: 1 });
  });
});

test("finds the backlog without any signal, also when no worker lives", async () => {
  const { id } = await accept(fixture.database.db, fixture.key);
  await dispatching({ liveWorkers: () => 0 }, async () => {
    await eventually(async () => (await fixture.read(id)).status === "dispatched");
  });
  expect((await fixture.read(id)).attempt).toBe(1);
});

test("keeps the queue shallow and the rest in the backlog, first come, first served", async () => {
  const { db } = fixture.database;
  const [model] = fixture.models;
  const target = Math.floor((model?.engine.max_batch_samples ?? 0) * 1.5);
  const ids: RolloutId[] = [];
  for (let n = 0; n < target + 3; n++) ids.push((await accept(db, fixture.key)).id);
  await dispatching({}, async () => {
    const statuses = await eventually(async () => {
      const seen = await db.query<{ status: string }>(
        "SELECT status FROM rollouts WHERE id = ANY ($1) ORDER BY array_position($1, id)",
        [ids],
      );
      return seen.some(({ status }) => status === "dispatched") && seen.map(({ status }) => status);
    });
    expect(statuses).toEqual([...Array(target).fill("dispatched"), "queued", "queued", "queued"]);
  });
});

test("a customer with a long backlog leaves half of the places to one who comes later, under the next leader, too", async () => {
  const { db } = fixture.database;
  const [model] = fixture.models;
  const target = Math.floor((model?.engine.max_batch_samples ?? 0) * 1.5);
  const other = await newCustomer(db);
  for (let n = 0; n < 3 * target; n++) await accept(db, fixture.key, { lane: "bulk" });
  const dispatched = async (): Promise<{ id: RolloutId; customer_id: string }[]> =>
    db.query("SELECT id, customer_id FROM rollouts WHERE status = 'dispatched' AND lane = 'bulk'");
  await dispatching({}, async () => {
    await eventually(async () => (await dispatched()).length === target);
  });
  for (let n = 0; n < target; n++) await accept(db, other, { lane: "bulk" });
  for (const { id } of await dispatched()) await settle(db, id, 1, cancelled);
  await dispatching({}, async () => {
    const next = await eventually(async () => {
      const rows = await dispatched();
      return rows.length === target && rows;
    });
    const others = next.filter(({ customer_id }) => customer_id === other.customer_id).length;
    expect(Math.abs(2 * others - target)).toBeLessThanOrEqual(2);
  });
});

test.each([
  ["are counted", 1],
  ["are another deployment", null],
])("bulk takes no place from realtime, nor realtime from bulk, where the workers %s", async (_, live) => {
  const { db } = fixture.database;
  const [model] = fixture.models;
  const target = Math.floor((model?.engine.max_batch_samples ?? 0) * 1.5);
  const dispatchedOf = async (lane: string): Promise<number> => {
    const rows = await db.query("SELECT FROM rollouts WHERE status = 'dispatched' AND lane = $1 AND customer_id = $2", [
      lane,
      fixture.key.customer_id,
    ]);
    return rows.length;
  };
  for (let n = 0; n < target + 2; n++) await accept(db, fixture.key, { lane: "bulk" });
  await dispatching({ liveWorkers: () => live }, async () => {
    await eventually(async () => (await dispatchedOf("bulk")) === target);
    expect(await dispatchedOf("realtime")).toBe(0);
    for (let n = 0; n < target + 2; n++) await accept(db, fixture.key);
    await fixture.queues.signals.publish({ kind: "queued" });
    await eventually(async () => (await dispatchedOf("realtime")) === target);
    expect(await dispatchedOf("bulk")).toBe(target);
  });
});

test("a long look at bulk customers holds up nobody who waits", async () => {
  const { database, key, queues } = fixture;
  const bulk = await accept(database.db, key, { lane: "bulk" });
  const looking = Promise.withResolvers<void>();
  const seen = Promise.withResolvers<void>();
  const db = database.as("scheduler");
  const slow: typeof db = {
    ...db,
    async query<Row>(text: string, params?: readonly unknown[]) {
      if (/RECURSIVE/.test(text) && JSON.stringify(params).includes('"bulk"')) {
        looking.resolve();
        await seen.promise;
      }
      return db.query<Row>(text, params);
    },
  };
  await dispatching({ db: slow }, async () => {
    try {
      await looking.promise;
      const { id } = await accept(database.db, key);
      await queues.signals.publish({ kind: "queued" });
      await eventually(async () => (await fixture.read(id)).status === "dispatched");
      expect((await fixture.read(bulk.id)).status).toBe("queued");
    } finally {
      seen.resolve();
    }
    await eventually(async () => (await fixture.read(bulk.id)).status === "dispatched");
  });
});

test("a customer's scored rollouts go a few at a time, while others' go on, and none is refused", async () => {
  const { db } = fixture.database;
  const other = await newCustomer(db);
  const scored = { lane: "bulk", scored: true } as const;
  const mine: RolloutId[] = [];
  for (let n = 0; n < 20; n++) mine.push((await accept(db, fixture.key, scored)).id);
  const theirs = [await accept(db, other, { lane: "bulk" }), await accept(db, other, scored)];
  const plain = await accept(db, fixture.key, { lane: "bulk" });
  let mostAtOnce = 0;
  const dispatchedOf = async (ids: readonly RolloutId[]): Promise<RolloutId[]> => {
    const rows = await db.query<{ id: RolloutId }>(
      "SELECT id FROM rollouts WHERE status = 'dispatched' AND id = ANY ($1) ORDER BY array_position($1, id)",
      [ids],
    );
    return rows.map(({ id }) => id);
  };
  await dispatching({}, async () => {
    const others = [...theirs, plain].map(({ id }) => id);
    await eventually(async () => (await dispatchedOf(others)).length === others.length);
    for (let ended = 0; ended < mine.length; ended++) {
      const left = Math.min(2, mine.length - ended);
      const running = await eventually(async () => {
        const ids = await dispatchedOf(mine);
        mostAtOnce = Math.max(mostAtOnce, ids.length);
        return ids.length === left && ids;
      });
      expect(running[0]).toBe(mine[ended]);
      await settle(db, running[0] as RolloutId, null, cancelled);
      await fixture.queues.signals.publish({ kind: "finished", rollout_id: running[0] as RolloutId });
    }
  });
  expect(mostAtOnce).toBe(2);
});

test("a leader whose term is over dispatches nothing", async () => {
  const { id } = await accept(fixture.database.db, fixture.key);
  await dispatching({ epoch: epoch - 1n }, async () => {
    await fixture.queues.signals.publish({ kind: "queued" });
    await dispatching({}, async () => {
      await eventually(async () => (await fixture.read(id)).status === "dispatched");
    });
  });
  expect((await fixture.read(id)).attempt).toBe(1);
});

test("a rollout that is cancelled between its commit and its job leaves no job behind", async () => {
  const { db } = fixture.database;
  const { id } = await accept(db, fixture.key);
  const queue = predictQueue(fixture.queues, MODEL, "realtime");
  let added = false;
  const slow: typeof fixture.queues = {
    ...fixture.queues,
    open: (name, parse) => {
      const opened = fixture.queues.open(name, parse);
      return {
        ...opened,
        async add(...job) {
          await settle(db, id, null, cancelled);
          await opened.add(...job);
          added = true;
        },
      };
    },
  };
  await dispatching({ queues: slow }, async () => {
    await eventually(async () => added && (await queue.find(jobIdOf(id, 1))) === null);
    expect((await fixture.read(id)).status).toBe("cancelled");
  });
});

test("a cancelled rollout is not dispatched any more", async () => {
  const { db } = fixture.database;
  const first = await accept(db, fixture.key);
  await settle(db, first.id, null, cancelled);
  const second = await accept(db, fixture.key);
  await dispatching({}, async () => {
    await eventually(async () => (await fixture.read(second.id)).status === "dispatched");
  });
  expect(await predictQueue(fixture.queues, MODEL, "realtime").find(jobIdOf(first.id, 1))).toBeNull();
});
