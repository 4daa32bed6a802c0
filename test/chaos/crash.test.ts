/**
 * Promise 3, attacked: any process may be killed at any instruction. Customers send rollouts (single, batches, with
 * and without idempotency keys, some hang up) while gateway, scheduler, settlement worker and inference workers are
 * SIGKILLed at random moments; then every account is balanced to the mil.
 *
 * `npm test` runs a short form; `npm run chaos` 150 rollouts on each queue backend. CHAOS_SEED replays a failure's schedule.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { freePort } from "#cli/ports.ts";
import { mils } from "#contract/mils.ts";
import { createKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";
import { npy } from "#test/support/npy.ts";
import { freshRedisUrl } from "#test/support/redis.ts";

import { drawRequest, send, type CustomerReply } from "./customer.ts";
import { type ProcessGroup, ROLES, startProcessGroup } from "./process-group.ts";
import { seededRandom } from "./random.ts";

const LONG = process.env["CHAOS"] === "long";
const SEED = Number(process.env["CHAOS_SEED"] ?? (LONG ? Date.now() % 2 ** 31 : 20_261_122));
const ROLLOUTS = LONG ? 150 : 24;
const KILLS = LONG ? 60 : 10;
const CUSTOMERS = 3;
const MODEL = "pusht-small";
/** After the last customer has been answered, everything must be settled within this. */
const SETTLED_WITHIN_MS = 60_000;
/** `CustomerReply.status` of a customer who did not wait. */
const HUNG_UP = -1;
const GRANTED = mils(1_000_000);

describe.each(LONG ? (["postgres", "redis"] as const) : (["postgres"] as const))("with the queue on %s", (backend) => {
  let database: TestDatabase;
  let group: ProcessGroup;
  let dataDir: string;

  beforeAll(async () => {
    mkdirSync("test-output", { recursive: true });
    const logFile = join("test-output", `chaos-${backend}.log`);
    rmSync(logFile, { force: true });
    dataDir = mkdtempSync(join(tmpdir(), "dream-chaos-"));
    database = await createTestDatabase();
    group = await startProcessGroup({
      env: {
        DATABASE_URL: database.url,
        ...(backend === "redis" ? { REDIS_URL: await freshRedisUrl() } : {}),
        DATA_DIR: dataDir,
        BLOB_URL: `file://${dataDir}/blobs`,
        LOG_LEVEL: "info",
      },
      port: await freePort(),
      model: MODEL,
      logFile,
    });
  }, 90_000);

  afterAll(async () => {
    await group?.stop();
    await database?.drop();
    rmSync(dataDir, { recursive: true, force: true });
  }, 60_000);

  test(
    `after ${KILLS} SIGKILLs over ${ROLLOUTS} rollouts every rollout is settled and every account balances`,
    async () => {
      console.log(`chaos seed ${SEED} (replay: CHAOS_SEED=${SEED})`);
      const random = seededRandom(SEED);
      const inputs = exampleInputs();
      const keys = await Promise.all(
        Array.from({ length: CUSTOMERS }, (_, index) =>
          createKey(database.db, { customer: `chaos-${index}@example.com`, initial_credits: GRANTED }, (size) =>
            Uint8Array.from({ length: size }, () => random.integer(0, 255)),
          ),
        ),
      );

      const requests = Array.from({ length: ROLLOUTS }, (_, index) => drawRequest(random, index));
      const replies: { reply: CustomerReply; customer: string }[] = [];
      const customers = keys.map(async (key) => {
        for (let request = requests.shift(); request; request = requests.shift()) {
          replies.push({
            reply: await send(group.baseUrl, key.api_key, request, inputs),
            customer: key.customer_id,
          });
        }
      });
      const killer = (async () => {
        for (let kill = 0; kill < KILLS; kill++) {
          await delay(random.integer(100, 1_500));
          group.kill(random.pick(ROLES));
        }
      })();
      await Promise.all([...customers, killer]);
      await untilAllSettled(database);

      // The auditor recomputes every chain, sum and refund from the entries alone.
      expect(await verifyLedger(database.db)).toEqual([]);

      // What was taken equals what was delivered, to the mil, for each customer.
      for (const key of keys) {
        const [row] = await database.db.query<{ balance: bigint; earned: bigint; frames: bigint }>(
          `SELECT (SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance') AS balance,
                coalesce(sum(charge_mils - refunded_mils), 0)::bigint AS earned,
                coalesce(sum(frames) FILTER (WHERE status = 'succeeded'), 0)::bigint AS frames
           FROM rollouts WHERE customer_id = $1`,
          [key.customer_id],
        );
        expect(row?.earned).toBe((row?.frames ?? 0n) * 5n);
        expect(GRANTED - (row?.balance ?? 0n)).toBe(row?.earned);
      }

      // What customers were told is true: everybody got a video, hung up, or was told of a failure that cost nothing
      // (a rollout whose worker was killed twice is given up and refunded).
      const unexpected = replies
        .map(({ reply }) => reply)
        .filter(({ status, body }) => {
          if (status === 500) return !/engine_failed|rollout_lost|rollout_cancelled/.test(body.toString("latin1"));
          return status !== 200 && status !== HUNG_UP;
        })
        .map(({ request, status, body }) => `${request.route}: ${status} ${body.toString("latin1").slice(0, 300)}`);
      expect(unexpected).toEqual([]);

      const [counts] = await database.db.query<{ keyed: bigint; charged: bigint; refunded: bigint; total: bigint }>(
        `SELECT count(DISTINCT i.key) AS keyed, count(*) FILTER (WHERE r.refunded_mils = 0) AS charged,
              (SELECT count(*) FROM rollouts WHERE refunded_mils > 0) AS refunded, (SELECT count(*) FROM rollouts) AS total
         FROM idempotency_keys i JOIN rollouts r ON r.id = i.rollout_id`,
      );
      const answered = replies.filter(({ reply }) => reply.status === 200);
      const kept = answered.filter(({ reply }) => reply.request.idempotencyKey !== null).length;
      expect(Number(counts?.charged)).toBeGreaterThanOrEqual(kept);
      console.log(
        `${answered.length} answered, ${replies.length - answered.length} hung up; ${counts?.total} rollouts, ` +
          `${counts?.refunded} refunded; kills: ${[...group.kills].map(([role, n]) => `${role} ${n}`).join(", ")}`,
      );
    },
    LONG ? 1_200_000 : 240_000,
  );
});

async function untilAllSettled(target: TestDatabase): Promise<void> {
  const deadline = Date.now() + SETTLED_WITHIN_MS;
  for (;;) {
    const stuck = await target.db.query<{ id: string; status: string }>(
      `SELECT id, status FROM rollouts WHERE status IN ('queued', 'dispatched')`,
    );
    if (stuck.length === 0) return;
    if (Date.now() > deadline) throw new Error(`not settled within ${SETTLED_WITHIN_MS} ms: ${JSON.stringify(stuck)}`);
    await delay(100);
  }
}

function exampleInputs(): { frame: Uint8Array; actionsNpy: (actions: number) => Uint8Array } {
  const example = readFileSync(`models/${MODEL}/example/actions.npy`);
  const values = npy.read(example);
  return {
    frame: readFileSync(`models/${MODEL}/example/start_frame.png`),
    actionsNpy: (actions) => npy.write(values.subarray(0, actions * 2), [actions, 2]),
  };
}
