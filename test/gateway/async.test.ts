/** Rollouts that nobody waits for: submitted, asked about, waited for by polling; they go on whatever becomes of their caller. */
import { request as httpRequest } from "node:http";

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";

import { booksOf, eventually } from "./support/books.ts";
import { FORM_TYPE, formBody, getWithKey, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let key: CreatedKey;

/** Blobs deleted in this test. */
let deletes = 0;

beforeAll(async () => {
  t = await startTestGateway();
  const remove = t.blobs.delete.bind(t.blobs);
  t.blobs.delete = (name) => {
    deletes += 1;
    return remove(name);
  };
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  key = await t.newKey(mils(490));
  deletes = 0;
});
afterEach(async () => {
  t.worker.fate = "succeed";
  await t.worker.finishHanging();
});

const submit = async (params: object = {}, headers: Record<string, string> = {}, url = "/v1/rollouts") =>
  postForm(t.app, url, key.api_key, await rolloutParts(JSON.stringify({ mode: "async", ...params })), headers);

const show = async (id: string, query = "") => getWithKey(t.app, `/v1/rollouts/${id}${query}`, key.api_key);

async function stored(id: string): Promise<Rollout> {
  const [row] = await t.db.query<Rollout>(`SELECT * FROM rollouts WHERE id = $1`, [id]);
  if (!row) throw new Error(`no rollout ${id}`);
  return row;
}

describe("submitting", () => {
  test("is answered with 202 also while nobody can tell how the workers are: it is paid, and must not be sent again", async () => {
    const away = await startTestGateway({
      pools: { poolStates: () => Promise.reject(new Error("the queue is away")) },
    });
    try {
      away.worker.fate = "hang";
      const payer = await away.newKey(mils(490));
      const form = await rolloutParts(JSON.stringify({ mode: "async" }));
      const answer = await postForm(away.app, "/v1/rollouts", payer.api_key, form);
      expect(answer.statusCode).toBe(202);
      expect(Number(answer.headers["retry-after"])).toBeGreaterThan(0);
      const shown = await getWithKey(away.app, `/v1/rollouts/${answer.json().id}`, payer.api_key);
      expect(shown.statusCode).toBe(200);
    } finally {
      await away.stop();
    }
  });

  test("answers 202 with the envelope and where to look, charged once and queued behind whoever waits", async () => {
    t.worker.fate = "hang";
    const answer = await submit({ seed: 7 }, { host: "dream.example" });
    expect(answer.statusCode).toBe(202);
    const envelope = answer.json();
    expect(envelope).toMatchObject({
      object: "rollout",
      mode: "async",
      status: "queued",
      queue_position: 1,
      frames: 49,
      frames_done: 0,
      frames_total: 49,
      engine_wall_ms: null,
      video_url: null,
      video_urls: [],
      video_url_expires_at: null,
      started: null,
      finished: null,
      expires_at: null,
      charged_mils: 245,
      refunded_mils: 0,
      cost_mils: 245,
      seed: 7,
      error: null,
      webhook_url: null,
      dataset: null,
      request_id: answer.headers["x-dreamengine-request-id"],
    });
    expect(answer.headers["location"]).toBe(`http://dream.example/v1/rollouts/${envelope.id}`);
    expect(Number(answer.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    const row = await stored(envelope.id);
    expect(row).toMatchObject({ lane: "bulk", waiter_id: null, route: "rollouts" });
    expect(envelope.start_by - Date.now() / 1000).toBeGreaterThan(86_390);
    expect(envelope.start_by - Date.now() / 1000).toBeLessThan(86_410);
    expect((await booksOf(t, key.customer_id)).balance).toBe(245n);

    await t.worker.finishHanging();
    const done = (await show(envelope.id)).json();
    expect(done).toMatchObject({
      status: "succeeded",
      mode: "async",
      frames_done: 49,
      queue_position: null,
      start_by: null,
      refunded_mils: 0,
    });
    expect(done.finished).toBeGreaterThanOrEqual(done.started);
    expect(done.expires_at).toBe(Math.floor(done.finished + 30 * 86_400));
    const link = new URL(done.video_url);
    expect((await t.app.inject({ url: link.pathname + link.search })).headers["content-type"]).toBe("video/mp4");
  });

  test("says where it is under the base URL that was asked, and takes as long as was asked for", async () => {
    t.worker.fate = "hang";
    const url = "http://dream.example";
    const answer = await submit({ expires_in_s: 60 }, { host: "dream.example" }, "/m/pusher/v1/rollouts");
    expect(answer.headers["location"]).toBe(`${url}/m/pusher/v1/rollouts/${answer.json().id}`);
    const row = await stored(answer.json().id);
    expect(row.deadline_at.getTime() - row.created_at.getTime()).toBeGreaterThan(58_000);
    expect(row.deadline_at.getTime() - row.created_at.getTime()).toBeLessThan(61_000);
  });

  test("keeps the webhook's URL, in either mode", async () => {
    const webhook_url = "https://example.com/hook";
    expect((await submit({ webhook_url })).json()).toMatchObject({ webhook_url, mode: "async" });
    expect((await submit({ webhook_url, mode: "sync" })).json()).toMatchObject({ webhook_url, mode: "sync" });
  });

  test("costs what the balance has to pay, before anything is queued", async () => {
    const poor = await t.newKey(mils(100));
    const before = await booksOf(t, poor.customer_id);
    const answer = await postForm(t.app, "/v1/rollouts", poor.api_key, await rolloutParts('{"mode":"async"}'));
    expect(answer.statusCode).toBe(402);
    await eventually(
      () => booksOf(t, poor.customer_id),
      (books) => books.blobs === before.blobs,
    );
    expect(await booksOf(t, poor.customer_id)).toEqual(before);
  });

  test("a failure is shown with its code, refunded", async () => {
    t.worker.fate = { fail: "engine_failed" };
    const { id } = (await submit()).json();
    const failed = await eventually(
      async () => (await show(id)).json(),
      (envelope) => envelope.status === "failed",
    );
    expect(failed).toMatchObject({
      error: { code: "engine_failed", message: "scripted failure" },
      charged_mils: 245,
      refunded_mils: 245,
      cost_mils: 0,
      frames_done: 0,
      video_url: null,
    });
    expect((await booksOf(t, key.customer_id)).balance).toBe(490n);
  });

  test("goes on when its caller goes away before it has the answer", async () => {
    t.worker.fate = "hang";
    const server = await t.listen();
    const outgoing = httpRequest(`${server.url}/v1/rollouts`, {
      method: "POST",
      headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE },
    });
    outgoing.on("error", () => undefined);
    // Gone as soon as the rollout is there: the answer, which looks at the database first, is not on its way yet.
    const accepted = Promise.withResolvers<void>();
    const unsubscribe = await t.queues.signals.subscribe(["queued"], () => {
      outgoing.destroy();
      accepted.resolve();
    });
    outgoing.end(formBody(await rolloutParts('{"mode":"async"}')));
    await accepted.promise;
    await unsubscribe();
    await server.stop(); // whatever the server does about a caller that went away, it has done
    const rows = await t.db.query<Rollout>(`SELECT * FROM rollouts WHERE customer_id = $1`, [key.customer_id]);
    expect(rows).toMatchObject([{ status: "queued", refunded_mils: 0n }]);
    await t.worker.finishHanging();
    expect((await show(rows[0]?.id ?? "")).json().status).toBe("succeeded");
  });

  test("the same payload again is another rollout: what is fetched by id cannot get lost on its way", async () => {
    const [one, two] = [await submit(), await submit()];
    expect(one.json().id).not.toBe(two.json().id);
    await eventually(
      async () => (await stored(two.json().id)).status,
      (status) => status === "succeeded",
    );
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
    // Nor is it handed to whoever asks for the same and waits: that one pays, and has nothing left to pay with.
    expect((await postForm(t.app, "/v1/predict", key.api_key, await predictParts())).statusCode).toBe(402);
  });
});

describe("under an Idempotency-Key", () => {
  test("is submitted once; a repetition is told how it stands", async () => {
    t.worker.fate = "hang";
    const header = { "idempotency-key": "once" };
    const first = await submit({}, header);
    const again = await submit({}, header);
    expect([first.statusCode, again.statusCode]).toEqual([202, 202]);
    expect(again.json().id).toBe(first.json().id);
    await t.worker.finishHanging();
    const third = await submit({}, header);
    expect(third.statusCode).toBe(200);
    expect(third.headers["retry-after"]).toBeUndefined();
    expect(third.json()).toMatchObject({ id: first.json().id, status: "succeeded" });
    expect((await booksOf(t, key.customer_id)).balance).toBe(245n);
  });

  test("whoever waits for the same gets it when it is done; leaving, or running out of patience, cancels nothing", async () => {
    t.worker.fate = "hang";
    const header = { "idempotency-key": "both-modes" };
    const { id } = (await submit({}, header)).json();
    const server = await t.listen();
    const leaving = httpRequest(`${server.url}/v1/rollouts`, {
      method: "POST",
      headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE, ...header },
    });
    leaving.on("error", () => undefined);
    leaving.end(formBody(await rolloutParts("{}")));
    const waiting = postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
    // Both have found it when the inputs that they brought are deleted again.
    await eventually(
      () => Promise.resolve(deletes),
      (count) => count === 4,
    );
    leaving.destroy();
    await server.stop();
    expect((await stored(id)).status).toBe("queued");
    await t.worker.finishHanging();
    expect((await waiting).json()).toMatchObject({ id, status: "succeeded", mode: "async" });
  });

  test("a failed one stays failed and is not charged again", async () => {
    t.worker.fate = { fail: "engine_failed" };
    const header = { "idempotency-key": "fails" };
    const { id } = (await submit({}, header)).json();
    await eventually(
      async () => (await stored(id)).status,
      (status) => status === "failed",
    );
    t.worker.fate = "succeed";
    const again = await submit({}, header);
    expect(again.statusCode).toBe(200);
    expect(again.json()).toMatchObject({ id, status: "failed", error: { code: "engine_failed" }, cost_mils: 0 });
    expect((await booksOf(t, key.customer_id)).balance).toBe(490n);
  });

  test("another payload is refused, another mode is the same payload", async () => {
    const header = { "idempotency-key": "mine" };
    const first = await submit({}, header);
    expect((await submit({ seed: 1 }, header)).json().error.code).toBe("idempotency_mismatch");
    expect((await submit({ mode: "sync" }, header)).json().id).toBe(first.json().id);
  });
});

describe("asking", () => {
  test("shows what its worker says of the frames, and nothing where it has said nothing", async () => {
    t.worker.fate = "hang dispatched";
    const { id } = (await submit()).json();
    await eventually(
      async () => (await stored(id)).status,
      (status) => status === "dispatched",
    );
    // No worker has begun it: it can still expire, and has no beginning to show.
    const waits = { status: "queued", frames_done: null, queue_position: null, started: null };
    const start_by = Math.floor(((await stored(id)).start_by?.getTime() ?? 0) / 1000);
    expect((await show(id)).json()).toMatchObject({ ...waits, start_by });
    await t.queues.signals.publish({ kind: "progress", rollout_id: id, frames: 25 });
    const running = await eventually(
      () => show(id),
      (answer) => answer.json().status === "running",
    );
    expect(running.json()).toMatchObject({ frames_done: 25, frames_total: 49, start_by: null, expires_at: null });
    expect(running.json().started).toBeGreaterThan(0);
    expect(running.headers["retry-after"]).toBe("1");
    await t.worker.finishHanging();
    const done = await show(id);
    expect(done.json()).toMatchObject({ status: "succeeded", frames_done: 49 });
    expect(done.headers["retry-after"]).toBeUndefined();
  });

  test("with wait= is answered as soon as it ends", async () => {
    t.worker.fate = "hang";
    const { id } = (await submit()).json();
    const waiting = show(id, "?wait=50");
    await t.worker.finishHanging();
    expect((await waiting).json()).toMatchObject({ id, status: "succeeded" });
    // And of one that has ended, at once.
    expect((await show(id, "?wait=50")).json().status).toBe("succeeded");
  });

  test("with wait= is answered with the state of then when the time is over", async () => {
    t.worker.fate = "hang";
    const { id } = (await submit()).json();
    const begun = performance.now();
    const answer = await show(id, "?wait=1");
    expect(performance.now() - begun).toBeGreaterThanOrEqual(990);
    expect(answer.json().status).toBe("queued");
    expect(Number(answer.headers["retry-after"])).toBeGreaterThanOrEqual(1);
  });

  test.for(["51", "-1", "1.5", "soon"])("wait=%s is refused", async (wait) => {
    const { id } = (await submit()).json();
    expect((await show(id, `?wait=${wait}`)).statusCode).toBe(422);
  });

  test("many at once keep no connection of the database from others", async () => {
    t.worker.fate = "hang";
    const { id } = (await submit()).json();
    // Five times as many as the pool has.
    const waiting = Array.from({ length: 50 }, () => show(id, "?wait=20"));
    for (let n = 0; n < 5; n++) {
      const begun = performance.now();
      expect((await getWithKey(t.app, "/v1/billing/balance", key.api_key)).statusCode).toBe(200);
      expect(performance.now() - begun).toBeLessThan(2_000);
    }
    await t.worker.finishHanging();
    for (const answer of await Promise.all(waiting)) expect(answer.json().status).toBe("succeeded");
  });

  test("a server that stops answers those who wait at once, and the rollout goes on", async () => {
    t.worker.fate = "hang";
    const { id } = (await submit()).json();
    const server = await t.listen();
    const headers = { authorization: `Bearer ${key.api_key}` };
    const waiting = fetch(`${server.url}/v1/rollouts/${id}?wait=50`, { headers });
    // Whole requests after it pass through the same steps, so it waits when they are over.
    for (let n = 0; n < 3; n++) await (await fetch(`${server.url}/v1/rollouts/${id}`, { headers })).text();
    const begun = performance.now();
    const stopped = server.stop();
    const answer = await waiting;
    expect(performance.now() - begun).toBeLessThan(3_000);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ id, status: "queued" });
    await stopped;
    expect((await stored(id)).status).toBe("queued");
  });

  test("whoever asks and leaves does not keep a rollout alive whose own caller left", async () => {
    t.worker.fate = "hang";
    const server = await t.listen();
    const caller = httpRequest(`${server.url}/v1/rollouts`, {
      method: "POST",
      headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE },
    });
    caller.on("error", () => undefined);
    caller.end(formBody(await rolloutParts("{}")));
    const id = await eventually(
      async () =>
        (await t.db.query<{ id: string }>(`SELECT id FROM rollouts WHERE customer_id = $1`, [key.customer_id]))[0]?.id,
      (found) => found !== undefined,
    );
    const headers = { authorization: `Bearer ${key.api_key}` };
    const asking = fetch(`${server.url}/v1/rollouts/${id}?wait=50`, { headers });
    // Whole requests after it pass through the same steps, so it waits when they are over.
    for (let n = 0; n < 3; n++) await (await fetch(`${server.url}/v1/rollouts/${id}`, { headers })).text();
    caller.destroy();
    const answer = await asking;
    expect(await answer.json()).toMatchObject({ id, status: "cancelled", refunded_mils: 245 });
    await server.stop();
  });
});
