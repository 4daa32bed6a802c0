/** Calls that stop waiting: the caller goes away, the deadline passes, the server stops. Always refunded first. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { jobIdOf } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { DEFAULT_BOUNDS } from "#gateway/gateway-parts.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { predictQueue } from "#queue/queues.ts";
import type { Signal } from "#queue/signals.ts";
import { predictJobOf } from "#rollouts/dispatch.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { untilWaitingForLocks } from "#test/support/postgres.ts";

import { booksOf, eventually } from "./support/books.ts";
import { FORM_TYPE, formBody, type Part, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let url: URL;
let key: CreatedKey;
/** A video that is still on its way when its caller has seen the first of it. */
const MORE_THAN_SOCKETS_HOLD = 32 * 1024 * 1024;

const signals: Signal[] = [];
const deleted: string[] = [];

beforeAll(async () => {
  t = await startTestGateway();
  url = new URL((await t.listen()).url);
  const remove = t.blobs.delete.bind(t.blobs);
  t.blobs.delete = (name) => {
    deleted.push(name);
    return remove(name);
  };
  await t.queues.signals.subscribe(["cancel"], (signal) => void signals.push(signal));
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  key = await t.newKey(mils(245));
  signals.length = 0;
  deleted.length = 0;
});
afterEach(() => {
  t.worker.fate = "succeed";
});

/** Sends a request on a socket of its own and leaves the answer to the test. */
async function send(path: string, parts: readonly Part[], headers: Record<string, string> = {}): Promise<Socket> {
  const body = formBody(parts);
  const socket = connect(Number(url.port), url.hostname);
  await once(socket, "connect");
  const lines = {
    Host: url.host,
    Authorization: `Bearer ${key.api_key}`,
    "Content-Type": FORM_TYPE,
    "Content-Length": String(body.length),
    ...headers,
  };
  const head = Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.write(`POST ${path} HTTP/1.1\r\n${head.join("")}\r\n`);
  socket.write(body);
  return socket;
}

interface Row {
  readonly id: string;
  readonly status: string;
}
const rows = (): Promise<Row[]> =>
  t.db.query<Row>(`SELECT id, status FROM rollouts WHERE customer_id = $1 ORDER BY created_at`, [key.customer_id]);
const untilStatus = (status: string): Promise<Row[]> =>
  eventually(rows, (all) => all.length > 0 && all.every((row) => row.status === status));

describe("a caller that goes away", () => {
  test.for([
    ["/v1/predict", "hang"],
    ["/v1/predict", "hang dispatched"],
    ["/v1/predict/batch", "hang"],
    ["/v1/rollouts", "hang dispatched"],
  ] as const)("before %s finished (%s): cancelled and refunded, and the worker is told", async ([path, fate]) => {
    t.worker.fate = fate;
    const socket = await send(path, path === "/v1/rollouts" ? await rolloutParts("{}") : await predictParts());
    await untilStatus(fate === "hang" ? "queued" : "dispatched");
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
    socket.destroy();
    const [row] = await untilStatus("cancelled");
    expect((await booksOf(t, key.customer_id)).balance).toBe(245n);
    await eventually(
      () => Promise.resolve(signals),
      (all) => all.some((signal) => signal.kind === "cancel" && signal.rollout_id === row?.id),
    );
  });

  test("before a worker took its job: the job is taken out of the queue", async () => {
    t.worker.fate = "hang dispatched";
    const socket = await send("/v1/predict", await predictParts());
    const [row] = await untilStatus("dispatched");
    const [rollout] = await t.db.query<Rollout>(`SELECT * FROM rollouts WHERE id = $1`, [row?.id]);
    if (!rollout) throw new Error("no rollout");
    const queue = predictQueue(t.queues, rollout.model, rollout.lane);
    await queue.add(jobIdOf(rollout.id, rollout.attempt), predictJobOf(rollout));
    socket.destroy();
    await untilStatus("cancelled");
    await expect.poll(() => queue.find(jobIdOf(rollout.id, rollout.attempt)), { timeout: 5_000 }).toBeNull();
  });

  test("while its request is still arriving: nothing happened", async () => {
    const before = await booksOf(t, key.customer_id);
    const body = formBody(await predictParts());
    const socket = await send("/v1/predict", [], { "Content-Length": String(body.length) });
    socket.write(body.subarray(0, 200));
    socket.destroy();
    await once(socket, "close");
    // A whole request afterwards passes through the same code, so the first is over when this is.
    expect((await postForm(t.app, "/v1/predict", key.api_key, [])).statusCode).toBe(422);
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("after it finished, before it has the whole video: it stays charged, and repeating the request delivers it", async () => {
    t.worker.fate = "hang dispatched";
    t.worker.paddingBytes = MORE_THAN_SOCKETS_HOLD;
    const socket = await send("/v1/predict", await predictParts());
    await untilStatus("dispatched");
    const beginning = once(socket, "data");
    await t.worker.finishHanging();
    const [row] = await untilStatus("succeeded");
    await beginning;
    socket.destroy();
    t.worker.paddingBytes = 0;

    const again = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
    expect(again.statusCode).toBe(200);
    expect(again.headers["x-dreamengine-rollout-id"]).toBe(row?.id);
    expect(again.rawPayload.length).toBeGreaterThan(MORE_THAN_SOCKETS_HOLD);
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
    // Now it has arrived: the same once more is a new rollout, for which there is no money.
    expect((await postForm(t.app, "/v1/predict", key.api_key, await predictParts())).statusCode).toBe(402);
  });

  test("is not one that is still being sent its video: the same payload meanwhile is a second rollout", async () => {
    t.worker.paddingBytes = MORE_THAN_SOCKETS_HOLD;
    const first = await send("/v1/predict", await predictParts());
    await once(first, "data");
    first.pause();
    t.worker.paddingBytes = 0;
    // On the same server, which knows what it is sending.
    const second = await send("/v1/predict", await predictParts());
    expect((await readAnswer(second)).status).toBe(402);
    expect((await rows()).map(({ status }) => status)).toEqual(["succeeded"]);
    first.destroy();
  });

  test("while another one waits under the same idempotency key: the rollout goes on", async () => {
    t.worker.fate = "hang";
    const parts = await rolloutParts("{}");
    const header = { "Idempotency-Key": "two-callers" };
    const first = await send("/v1/rollouts", parts, header);
    await untilStatus("queued");
    const second = await send("/v1/rollouts", parts, header);
    const answer = readAnswer(second);
    // It waits once its inputs, written before it turned out to be a repetition, are deleted again.
    await eventually(
      () => Promise.resolve(deleted.length),
      (count) => count === 2,
    );
    first.destroy();
    await t.worker.finishHanging();
    expect((await answer).status).toBe(200);
    expect((await rows()).map(({ status }) => status)).toEqual(["succeeded"]);
  });

  test("while another one waits at another server under the same idempotency key: that one's runs anew", async () => {
    t.worker.fate = "hang";
    const parts = await rolloutParts("{}");
    const header = { "Idempotency-Key": "two-servers" };
    const first = await send("/v1/rollouts", parts, header);
    const [called] = await untilStatus("queued");
    const second = postForm(t.app, "/v1/rollouts", key.api_key, parts, header);
    await eventually(
      () => Promise.resolve(deleted.length),
      (count) => count === 2,
    );
    t.worker.fate = "succeed";
    first.destroy();
    const answer = await second;
    expect(answer.statusCode).toBe(200);
    expect(answer.json().id).not.toBe(called?.id);
    expect((await rows()).map(({ status }) => status)).toEqual(["cancelled", "succeeded"]);
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
  });

  test("and repeats its request with the same idempotency key: it runs anew, charged once", async () => {
    t.worker.fate = "hang";
    const parts = await rolloutParts("{}");
    const socket = await send("/v1/rollouts", parts, { "Idempotency-Key": "retry" });
    await untilStatus("queued");
    socket.destroy();
    await untilStatus("cancelled");
    t.worker.fate = "succeed";
    const again = await postForm(t.app, "/v1/rollouts", key.api_key, parts, { "idempotency-key": "retry" });
    expect(again.statusCode).toBe(200);
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
  });
});

describe("a deadline that passes", () => {
  test.for(["hang", "hang dispatched"] as const)("is 504 after the refund (%s)", async (fate) => {
    const hasty = await startTestGateway({ bounds: { ...DEFAULT_BOUNDS, syncDeadlineMs: 300 } });
    try {
      hasty.worker.fate = fate;
      const own = await hasty.newKey(mils(245));
      const answer = await postForm(hasty.app, "/v1/predict", own.api_key, await predictParts());
      expect(answer.statusCode).toBe(504);
      expect(answer.json().error.code).toBe("deadline_exceeded");
      expect(answer.json().detail).toMatch(/cancelled and refunded in full/);
      expect((await booksOf(hasty, own.customer_id)).balance).toBe(245n);
    } finally {
      await hasty.stop();
    }
  });
});

describe("a database that goes away", () => {
  test.for([true, false])("in the middle of the debit (which then counts: %s): 503, and refunded", (after) =>
    withBreaking(
      (text) => text.includes("INSERT INTO rollouts"),
      after,
      async (own) => {
        own.worker.fate = "hang";
        const caller = await own.newKey(mils(245));
        const answer = await postForm(own.app, "/v1/predict", caller.api_key, await predictParts());
        expect(answer.statusCode).toBe(503);
        expect(answer.json().error.code).toBe("ledger_unavailable");
        await eventually(
          () => booksOf(own, caller.customer_id),
          ({ balance }) => balance === 245n,
        );
      },
    ),
  );

  test("while the debit waits for a lock, and the server goes on with it: 503, and refunded once it is done", async () => {
    let cancellations = 0;
    let committed: Promise<unknown> | undefined;
    const own = await startTestGateway({}, (db) => ({
      ...db,
      async query<Row>(text: string, params?: readonly unknown[]): Promise<Row[]> {
        const running = db.query<Row>(text, params);
        if (text.includes("INSERT INTO rollouts")) {
          committed = running;
          await untilWaitingForLocks(db, 1);
          throw new Error("Connection terminated unexpectedly");
        }
        const rows = await running;
        if (text.includes("frames_delivered = least")) cancellations += 1;
        return rows;
      },
    }));
    try {
      own.worker.fate = "hang";
      const caller = await own.newKey(mils(245));
      const holder = await own.db.pool.connect();
      await holder.query("BEGIN");
      await holder.query("SELECT FROM accounts WHERE customer_id = $1 FOR UPDATE", [caller.customer_id]);
      const answer = await postForm(own.app, "/v1/predict", caller.api_key, await predictParts());
      expect(answer.statusCode).toBe(503);
      // Looked for while it is not there yet.
      await eventually(
        () => Promise.resolve(cancellations),
        (count) => count > 0,
      );
      await holder.query("COMMIT");
      holder.release();
      await committed;
      const books = await eventually(
        () => booksOf(own, caller.customer_id),
        ({ balance }) => balance === 245n,
      );
      expect(books).toMatchObject({ rollouts: 1, entries: 3 });
    } finally {
      await own.stop();
    }
  });

  test.for([
    ["ran into its time limit", "SET LOCAL statement_timeout = 1", "SELECT pg_sleep(1)", 503, "ledger_unavailable"],
    ["could not be stored", "SELECT 1", "SELECT 1 / 0", 500, "internal"],
  ] as const)(
    "so that the debit %s: nothing was charged for certain, and nothing is left to be cancelled",
    async ([, before, failing, status, code]) => {
      const own = await startTestGateway({}, (db) => ({
        ...db,
        query: <Row>(text: string, params?: readonly unknown[]): Promise<Row[]> =>
          text.includes("INSERT INTO rollouts")
            ? db.transaction(async (tx) => {
                await tx.query(before);
                return tx.query<Row>(failing);
              })
            : db.query<Row>(text, params),
      }));
      try {
        const caller = await own.newKey(mils(245));
        const answer = await postForm(own.app, "/v1/predict", caller.api_key, await predictParts());
        expect([answer.statusCode, answer.json().error.code]).toEqual([status, code]);
        // Where it were in doubt, the inputs would stay for a rollout that may exist.
        const books = await eventually(
          () => booksOf(own, caller.customer_id),
          ({ blobs }) => blobs === 0,
        );
        expect(books).toMatchObject({ balance: 245n, rollouts: 0 });
      } finally {
        await own.stop();
      }
    },
  );

  test("because all its connections are taken: 503 with Retry-After, never 402, and nothing is charged", async () => {
    const own = await startTestGateway();
    const { pool } = own.options.db;
    const caller = await own.newKey(mils(245));
    pool.options.connectionTimeoutMillis = 200;
    const taken = await Promise.all(Array.from({ length: pool.options.max }, () => pool.connect()));
    try {
      const answer = await postForm(own.app, "/v1/predict", caller.api_key, await predictParts());
      expect([answer.statusCode, answer.json().error.code]).toEqual([503, "ledger_unavailable"]);
      expect(Number(answer.headers["retry-after"])).toBeGreaterThan(0);
      expect((await booksOf(own, caller.customer_id)).balance).toBe(245n);
    } finally {
      for (const connection of taken) connection.release();
    }
    expect((await postForm(own.app, "/v1/predict", caller.api_key, await predictParts())).statusCode).toBe(200);
    await own.stop();
  });

  test("while a call waits: waited out", () =>
    withBreaking(
      (text) => text.includes("WHERE id = $1 AND customer_id = $2"),
      false,
      async (own) => {
        const caller = await own.newKey(mils(245));
        const answer = await postForm(own.app, "/v1/predict", caller.api_key, await predictParts());
        expect(answer.statusCode).toBe(200);
      },
    ));

  test("while an unwanted rollout is cancelled: cancelled a little later", () =>
    withBreaking(
      (text) => text.includes("frames_delivered = least"),
      false,
      async (own) => {
        own.worker.fate = "hang";
        const server = await own.listen();
        const caller = await own.newKey(mils(245));
        const leave = new AbortController();
        const body = new Uint8Array(formBody(await predictParts()));
        const headers = { authorization: `Bearer ${caller.api_key}`, "content-type": FORM_TYPE };
        const pending = fetch(`${server.url}/v1/predict`, { method: "POST", body, headers, signal: leave.signal });
        await eventually(
          () => booksOf(own, caller.customer_id),
          ({ balance }) => balance === 0n,
        );
        leave.abort();
        await expect(pending).rejects.toThrow(/abort/);
        await eventually(
          () => booksOf(own, caller.customer_id),
          ({ balance }) => balance === 245n,
        );
        await server.stop();
      },
    ));
});

describe("a lost signal", () => {
  test("costs time, not the answer", async () => {
    t.worker.fate = "hang dispatched";
    const pending = postForm(t.app, "/v1/predict", key.api_key, await predictParts());
    const [row] = await untilStatus("dispatched");
    const publish = t.queues.signals.publish.bind(t.queues.signals);
    t.queues.signals.publish = async () => {};
    try {
      await t.worker.finishHanging();
    } finally {
      t.queues.signals.publish = publish;
    }
    expect((await pending).headers["x-dreamengine-rollout-id"]).toBe(row?.id);
  });
});

describe("a server that stops", () => {
  test("lets waiting calls finish, and answers new ones with 503", async () => {
    const server = await startTestGateway({ bounds: { ...DEFAULT_BOUNDS, drainMs: 10_000 } });
    const listening = await server.listen();
    const own = await server.newKey(mils(245));
    server.worker.fate = "hang";
    const body = new Uint8Array(formBody(await predictParts()));
    const headers = { authorization: `Bearer ${own.api_key}`, "content-type": FORM_TYPE };
    const pending = fetch(`${listening.url}/v1/predict`, { method: "POST", body, headers });
    await eventually(
      () => booksOf(server, own.customer_id),
      ({ rollouts }) => rollouts === 1,
    );
    const stopped = listening.stop();
    await server.worker.finishHanging();
    const answer = await pending;
    expect(answer.status).toBe(200);
    expect((await answer.arrayBuffer()).byteLength).toBe(Number(answer.headers.get("content-length")));
    await stopped;
    await server.stop();
  });

  test("cancels and refunds what does not finish in time", async () => {
    const server = await startTestGateway({ bounds: { ...DEFAULT_BOUNDS, drainMs: 100 } });
    const listening = await server.listen();
    const own = await server.newKey(mils(245));
    server.worker.fate = "hang dispatched";
    const body = new Uint8Array(formBody(await predictParts()));
    const headers = { authorization: `Bearer ${own.api_key}`, "content-type": FORM_TYPE };
    const pending = fetch(`${listening.url}/v1/predict`, { method: "POST", body, headers });
    await eventually(
      () => booksOf(server, own.customer_id),
      ({ rollouts }) => rollouts === 1,
    );
    const started = Date.now();
    await listening.stop();
    expect(Date.now() - started).toBeLessThan(5_000);
    const answer = await pending;
    expect(answer.status).toBe(503);
    expect(((await answer.json()) as { error: { code: string } }).error.code).toBe("shutting_down");
    expect((await booksOf(server, own.customer_id)).balance).toBe(245n);
    await server.stop();
  });

  test("tells new requests so, with a request id", async () => {
    const server = await startTestGateway();
    server.gateway.drain();
    const answer = await server.app.inject({ url: "/healthz" });
    expect(answer.statusCode).toBe(503);
    expect(answer.json().error.code).toBe("shutting_down");
    expect(answer.headers["x-dreamengine-request-id"]).toMatch(/^req_/);
    await server.stop();
  });
});

async function readAnswer(socket: Socket): Promise<{ status: number }> {
  const [first] = (await once(socket, "data")) as [Buffer];
  socket.destroy();
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(first.toString("latin1"))?.[1]) };
}

/** Fails the statements that `breaks` picks; `after` lets them take effect first, as a broken connection may. */
async function withBreaking(breaks: (text: string) => boolean, after: boolean, use: (g: TestGateway) => Promise<void>) {
  let left = 1;
  const own = await startTestGateway({}, (db) => ({
    ...db,
    async query(text, params) {
      const broken = left > 0 && breaks(text);
      if (broken) left -= 1;
      if (broken && !after) throw new Error("Connection terminated unexpectedly");
      const rows = await db.query<never>(text, params);
      if (broken) throw new Error("Connection terminated unexpectedly");
      return rows;
    },
  }));
  try {
    await use(own);
  } finally {
    await own.stop();
  }
}
