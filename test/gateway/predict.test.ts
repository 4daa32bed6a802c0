/** Rollouts through the gateway: what is answered, what it costs, and that nobody pays twice. */
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";

import { extract } from "tar-stream";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";

import { booksOf, eventually } from "./support/books.ts";
import { actionsFile, npy } from "./support/npy-writer.ts";
import { framePng, getWithKey, type Part, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { ENGINE_WALL_MS } from "./support/scripted-worker.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway();
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(() => {
  t.worker.fate = "succeed";
});

const row = async (value: unknown, column: "id" | "request_id" = "request_id"): Promise<Rollout | undefined> =>
  (await t.db.query<Rollout>(`SELECT * FROM rollouts WHERE ${column} = $1`, [value]))[0];

describe("POST /v1/predict", () => {
  test("answers with the video and what it cost", async () => {
    const key = await t.newKey(mils(1_000));
    const answer = await postForm(
      t.app,
      "/v1/predict",
      key.api_key,
      await predictParts({ seed: "-1", num_steps: "9" }),
    );
    expect(answer.statusCode).toBe(200);
    expect(answer.headers).toMatchObject({
      "content-type": "video/mp4",
      "content-length": String(answer.rawPayload.length),
      "x-dreamengine-frames": "49",
      "x-dreamengine-engine-wall-ms": String(ENGINE_WALL_MS),
      "x-dreamengine-estimated-charge-usd": "0.0245",
      "x-dreamengine-customer-id": key.customer_id,
    });
    expect(answer.rawPayload.subarray(4, 8).toString()).toBe("ftyp");
    expect((await booksOf(t, key.customer_id)).balance).toBe(755n);

    const rollout = await row(answer.headers["x-dreamengine-request-id"]);
    expect(rollout).toMatchObject({ route: "predict", model: "pusher", lane: "realtime", k: 1, frames: 49 });
    expect(rollout?.params).toEqual({ seed: "18446744073709551615", num_steps: 9, guidance: 0, prompt: "" });
    expect(rollout?.waiter_id).toMatch(/^gateway_/);
    await eventually(
      () => row(answer.headers["x-dreamengine-request-id"]),
      (it) => it?.delivered_at != null,
    );
  });

  test("parts may come in any order, and empty fields mean nothing was given", async () => {
    const key = await t.newKey();
    const parts = (await predictParts({ seed: "", guidance: "", prompt: "", model: "" })).toReversed();
    const answer = await postForm(t.app, "/v1/predict", key.api_key, parts);
    expect(answer.statusCode).toBe(200);
    expect((await row(answer.headers["x-dreamengine-request-id"]))?.params.seed).toBe("0");
  });

  test("`model` overrides the model of the base URL", async () => {
    const key = await t.newKey();
    const parts: Part[] = [
      { name: "frame", body: await framePng() },
      { name: "actions", body: actionsFile(16, 7) },
      { name: "model", body: "arm" },
    ];
    for (const url of ["/v1/predict", "/m/pusher/v1/predict", "/m/arm/v1/predict"]) {
      const answer = await postForm(t.app, url, key.api_key, parts);
      expect(answer.statusCode).toBe(200);
      expect(answer.headers["x-dreamengine-frames"]).toBe("17");
      expect((await row(answer.headers["x-dreamengine-request-id"]))?.model).toBe("arm");
    }
  });
});

describe("POST /v1/predict/batch", () => {
  test("answers with a tar of K videos in submission order, for one debit", async () => {
    const key = await t.newKey(mils(1_000));
    const answer = await postForm(t.app, "/v1/predict/batch", key.api_key, await batchParts([4, -4, 0]));
    expect(answer.statusCode).toBe(200);
    expect(answer.headers).toMatchObject({
      "content-type": "application/x-tar",
      "content-length": String(answer.rawPayload.length),
      "x-dreamengine-batch-size": "3",
      "x-dreamengine-frames": "13",
      "x-dreamengine-estimated-charge-usd": "0.0195",
    });
    const files = await filesOf(answer.rawPayload);
    expect(files.map(([name]) => name)).toEqual(["rollout_000.mp4", "rollout_001.mp4", "rollout_002.mp4"]);
    expect(new Set(files.map(([, video]) => video)).size).toBe(3);
    expect(await booksOf(t, key.customer_id)).toMatchObject({ balance: 1_000n - 195n });

    // The same candidates, sent alone and in another order, are the same videos.
    const other = await postForm(t.app, "/v1/predict/batch", key.api_key, await batchParts([0, 4]));
    const [first, second] = await filesOf(other.rawPayload);
    expect(first?.[1]).toBe(files[2]?.[1]);
    expect(second?.[1]).toBe(files[0]?.[1]);
  });

  test("the same rollout makes the same archive, byte for byte", async () => {
    const key = await t.newKey();
    const parts = await batchParts([1, 2]);
    const [one, two] = [
      await postForm(t.app, "/v1/predict/batch", key.api_key, parts),
      await postForm(t.app, "/v1/predict/batch", key.api_key, parts),
    ];
    expect(one.rawPayload.equals(two.rawPayload)).toBe(true);
  });

  test("takes 32 candidates, refuses 33", async () => {
    const key = await t.newKey();
    const all = await postForm(
      t.app,
      "/v1/predict/batch",
      key.api_key,
      await batchParts(Array.from({ length: 32 }, () => 1)),
    );
    expect(all.statusCode).toBe(200);
    const before = await booksOf(t, key.customer_id);
    const more = await postForm(
      t.app,
      "/v1/predict/batch",
      key.api_key,
      await batchParts(Array.from({ length: 33 }, () => 1)),
    );
    expect(more.statusCode).toBe(422);
    expect(more.json().detail).toBe("actions: expected at most 32 parts, got 33");
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });
});

describe("POST /v1/rollouts", () => {
  test("answers with an envelope whose link works without a key", async () => {
    const key = await t.newKey(mils(1_000));
    const seed = "9223372036854775811";
    const answer = await postForm(
      t.app,
      "/v1/rollouts",
      key.api_key,
      await rolloutParts(`{"model":"pusher","seed":${seed}}`),
    );
    expect(answer.statusCode).toBe(200);
    expect(answer.body).toContain(`"seed":${seed}`);
    const envelope = answer.json();
    expect(envelope).toMatchObject({
      object: "rollout",
      model: "pusher",
      status: "succeeded",
      queue_position: null,
      frames: 49,
      resolution: [96, 96],
      batch_size: 1,
      engine_wall_ms: ENGINE_WALL_MS,
      cost_usd: 0.0245,
      cost_mils: 245,
      error: null,
    });
    expect(envelope.id).toMatch(/^rollout_[0-9a-f]{32}$/);
    expect(Math.abs(envelope.created - Date.now() / 1000)).toBeLessThan(60);
    expect(envelope.video_url_expires_at - Date.now() / 1000).toBeGreaterThan(3_500);
    const link = new URL(envelope.video_url);
    const video = await t.app.inject({ url: link.pathname + link.search });
    expect(video.statusCode).toBe(200);
    expect(video.headers["content-type"]).toBe("video/mp4");

    // A stored result is a delivered one: the same payload again is a rollout of its own.
    const again = await postForm(
      t.app,
      "/v1/rollouts",
      key.api_key,
      await rolloutParts(`{"model":"pusher","seed":${seed}}`),
    );
    expect(again.json().id).not.toBe(envelope.id);
  });

  test("shows it again by its id, to its owner alone", async () => {
    const [owner, stranger] = [await t.newKey(), await t.newKey()];
    const {
      id,
      video_url: _url,
      ...made
    } = (await postForm(t.app, "/v1/rollouts", owner.api_key, await rolloutParts("{}"))).json();
    const shown = await getWithKey(t.app, `/v1/rollouts/${id}`, owner.api_key);
    expect(shown.json()).toMatchObject({ id, cost_mils: made.cost_mils, status: "succeeded" });
    for (const [key, path] of [
      [stranger, id],
      [owner, `rollout_${"0".repeat(32)}`],
      [owner, "nonsense"],
    ] as const) {
      const answer = await getWithKey(t.app, `/v1/rollouts/${path}`, key.api_key);
      expect(answer.statusCode).toBe(404);
      expect(answer.json().error.code).toBe("rollout_not_found");
    }
  });

  test("a rollout that waits shows as queued, with its place", async () => {
    t.worker.fate = "hang";
    const key = await t.newKey();
    const pending = postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"));
    const id = await eventually(
      async () =>
        (await t.db.query<{ id: string }>(`SELECT id FROM rollouts WHERE customer_id = $1`, [key.customer_id]))[0]?.id,
      (found) => found !== undefined,
    );
    const shown = await getWithKey(t.app, `/v1/rollouts/${id}`, key.api_key);
    expect(Number(shown.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    expect(shown.json()).toMatchObject({ status: "queued", queue_position: 1, video_url: null, engine_wall_ms: null });
    await t.worker.finishHanging();
    expect((await pending).json().id).toBe(id);
  });

  test("an unknown model is 422, never 404: the client would repeat the call without its name", async () => {
    const key = await t.newKey();
    const before = await booksOf(t, key.customer_id);
    const answer = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts('{"model":"cosmos"}'));
    expect(answer.statusCode).toBe(422);
    expect(answer.json().error).toMatchObject({
      code: "unknown_model",
      message: 'model: expected one of arm, pusher, got "cosmos"',
    });
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });
});

describe("rollouts that do not succeed are refunded before the answer", () => {
  test.for([
    [{ fail: "engine_failed" }, 500, "engine_failed"],
    [{ fail: "engine_timeout" }, 500, "engine_failed"],
    [{ fail: "bad_input" }, 500, "engine_failed"],
    [{ fail: "lost" }, 500, "rollout_lost"],
    [{ fail: "internal" }, 500, "internal"],
    ["expire", 504, "deadline_exceeded"],
  ] as const)("%j is %i %s", async ([fate, status, code]) => {
    t.worker.fate = fate;
    const key = await t.newKey(mils(245));
    for (const [url, parts] of [
      ["/v1/predict", await predictParts()],
      ["/v1/rollouts", await rolloutParts("{}")],
      ["/v1/predict/batch", await predictParts()],
    ] as const) {
      const answer = await postForm(t.app, url, key.api_key, parts);
      expect(answer.statusCode).toBe(status);
      expect(answer.json().error).toMatchObject({ code, request_id: answer.headers["x-dreamengine-request-id"] });
      expect(answer.json().detail).toContain("refunded $0.0245 of $0.0245");
      // So the next attempt does not meet a false 402.
      expect((await booksOf(t, key.customer_id)).balance).toBe(245n);
    }
  });
});

describe("a paid video that did not arrive", () => {
  test("is delivered at no charge to whoever repeats the request, also with an empty balance", async () => {
    const key = await t.newKey(mils(245));
    const id = await undelivered(key, await predictParts({ seed: "3" }));
    const before = await booksOf(t, key.customer_id);
    expect(before.balance).toBe(0n);
    const again = await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "3" }));
    expect(again.statusCode).toBe(200);
    expect(again.headers["x-dreamengine-rollout-id"]).toBe(id);
    expect(await booksOf(t, key.customer_id)).toEqual(before);

    // Now it has arrived, and the balance is empty.
    await eventually(
      async () =>
        (await t.db.query<{ delivered_at: Date | null }>(`SELECT delivered_at FROM rollouts WHERE id = $1`, [id]))[0],
      (it) => it?.delivered_at != null,
    );
    const third = await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "3" }));
    expect(third.statusCode).toBe(402);
  });

  test("nobody is told of an error because the delivery could not be noted: that would be paid for and lost", async () => {
    const key = await t.newKey(mils(490));
    await t.db.query(`CREATE FUNCTION no_notes() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'the connection broke'; END $$`);
    await t.db.query(`CREATE TRIGGER no_notes BEFORE UPDATE OF delivered_at ON rollouts EXECUTE FUNCTION no_notes()`);
    try {
      const single = await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "5" }));
      const linked = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts('{"seed":6}'));
      expect([single.statusCode, linked.statusCode]).toEqual([200, 200]);
      expect(linked.json()).toMatchObject({ status: "succeeded", cost_mils: 245 });
    } finally {
      await t.db.query(`DROP FUNCTION no_notes CASCADE`);
    }
  });

  test("is not given to another payload, to another customer, or after a quarter of an hour", async () => {
    const key = await t.newKey(mils(245));
    const id = await undelivered(key, await predictParts());
    const before = await booksOf(t, key.customer_id);
    expect((await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "1" }))).statusCode).toBe(402);
    expect(
      (await postForm(t.app, "/v1/predict/batch", key.api_key, await predictParts({ num_steps: "1" }))).statusCode,
    ).toBe(402);
    expect(await booksOf(t, key.customer_id)).toEqual(before);

    const other = await t.newKey(mils(245));
    const theirs = await postForm(t.app, "/v1/predict", other.api_key, await predictParts());
    expect(theirs.headers["x-dreamengine-rollout-id"]).not.toBe(id);

    await t.db.query(`UPDATE rollouts SET finished_at = finished_at - interval '16 minutes' WHERE id = $1`, [id]);
    expect((await postForm(t.app, "/v1/predict", key.api_key, await predictParts())).statusCode).toBe(402);
  });
});

test("a paid video that got lost on the way and in the store is dreamt again by whoever repeats the request", async () => {
  const key = await t.newKey(mils(2 * 245));
  const id = await undelivered(key, await predictParts());
  for (const name of (await row(id, "id"))?.result?.video_keys ?? []) await t.blobs.delete(name);
  const again = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  expect(again.statusCode).toBe(200);
  expect(again.headers["x-dreamengine-rollout-id"]).not.toBe(id);
  expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
});

test("the same payload several times at once, or right after each other, is several rollouts", async () => {
  const key = await t.newKey(mils(6 * 245));
  const parts = await predictParts();
  const together = await Promise.all(
    Array.from({ length: 4 }, () => postForm(t.app, "/v1/predict", key.api_key, parts)),
  );
  const after = [
    await postForm(t.app, "/v1/predict", key.api_key, parts),
    await postForm(t.app, "/v1/predict", key.api_key, parts),
  ];
  const ids = [...together, ...after].map(({ headers }) => headers["x-dreamengine-rollout-id"]);
  expect(new Set(ids).size).toBe(6);
  expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
});

test("a rollout whose model was taken down since is still shown", async () => {
  const key = await t.newKey();
  const { id } = (await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"))).json();
  await t.db.query(`UPDATE rollouts SET model = 'retired' WHERE id = $1`, [id]);
  expect((await getWithKey(t.app, `/v1/rollouts/${id}`, key.api_key)).json()).toMatchObject({
    id,
    model: "retired",
    resolution: null,
    status: "succeeded",
  });
});

describe("an Idempotency-Key", () => {
  test("gives the same rollout, charged once, by whichever route", async () => {
    const key = await t.newKey(mils(245));
    const header = { "idempotency-key": "once" };
    const first = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
    expect(first.statusCode).toBe(200);
    const before = await booksOf(t, key.customer_id);
    const again = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts('{"seed":0}'), header);
    expect(again.json().id).toBe(first.json().id);
    const video = await postForm(t.app, "/v1/predict", key.api_key, await predictParts(), header);
    expect(video.headers["x-dreamengine-rollout-id"]).toBe(first.json().id);
    // Inputs of the repetitions are deleted again.
    await eventually(
      () => booksOf(t, key.customer_id),
      (books) => books.blobs === before.blobs,
    );
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("with another payload is refused", async () => {
    const key = await t.newKey();
    const header = { "idempotency-key": "mine" };
    await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
    const before = await booksOf(t, key.customer_id);
    const other = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts('{"seed":1}'), header);
    expect(other.statusCode).toBe(422);
    expect(other.json().error.code).toBe("idempotency_mismatch");
    await eventually(
      () => booksOf(t, key.customer_id),
      (books) => books.blobs === before.blobs,
    );
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("of another customer is another key", async () => {
    const header = { "idempotency-key": "shared" };
    const [a, b] = [await t.newKey(), await t.newKey()];
    const one = await postForm(t.app, "/v1/rollouts", a.api_key, await rolloutParts("{}"), header);
    const two = await postForm(t.app, "/v1/rollouts", b.api_key, await rolloutParts("{}"), header);
    expect(one.json().id).not.toBe(two.json().id);
  });

  test("sent many times at once is one rollout that all of them get", async () => {
    const key = await t.newKey(mils(245));
    t.worker.fate = "hang";
    const parts = await rolloutParts("{}");
    const copies = Array.from({ length: 6 }, () =>
      postForm(t.app, "/v1/rollouts", key.api_key, parts, { "idempotency-key": "race" }),
    );
    await eventually(
      async () => (await booksOf(t, key.customer_id)).balance,
      (balance) => balance === 0n,
    );
    await t.worker.finishHanging();
    const answers = await Promise.all(copies);
    expect(answers.map(({ statusCode }) => statusCode)).toEqual(copies.map(() => 200));
    expect(new Set(answers.map((answer) => answer.json().id)).size).toBe(1);
    expect((await booksOf(t, key.customer_id)).balance).toBe(0n);
  });

  test("repeats a failure as it was, without running again", async () => {
    const key = await t.newKey(mils(245));
    const header = { "idempotency-key": "fails" };
    t.worker.fate = { fail: "engine_failed" };
    const first = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
    t.worker.fate = "succeed";
    const again = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
    expect([first.statusCode, again.statusCode]).toEqual([500, 500]);
    expect(again.json().detail).toBe(first.json().detail);
    expect((await booksOf(t, key.customer_id)).balance).toBe(245n);
  });

  test.for(["", " ", "two words", "tab\there", "x".repeat(256), "naïve"])("%j is no key", async (value) => {
    const key = await t.newKey();
    const answer = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), {
      "idempotency-key": value,
    });
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toMatch(/Idempotency-Key|idempotency-key/);
  });
});

/** Finished and charged, but never handed over. */
async function undelivered(key: { api_key: string }, parts: readonly Part[]) {
  const answer = await postForm(t.app, "/v1/predict", key.api_key, parts);
  const id = String(answer.headers["x-dreamengine-rollout-id"]);
  await eventually(
    () => row(answer.headers["x-dreamengine-request-id"]),
    (it) => it?.delivered_at != null,
  );
  await t.db.query(`UPDATE rollouts SET delivered_at = NULL WHERE id = $1`, [id]);
  return id;
}

async function batchParts(starts: readonly number[]): Promise<Part[]> {
  return [
    { name: "frame", body: await framePng(), filename: "frame.png" },
    ...starts.map((start, index) => ({
      name: "actions",
      body: npy([start, ...Array.from({ length: 23 }, () => 0)], [12, 2]),
      filename: `actions_${String(index).padStart(3, "0")}.npy`,
    })),
  ];
}

async function filesOf(tar: Buffer): Promise<[string, string][]> {
  const files: [string, string][] = [];
  const archive = extract();
  Readable.from([tar]).pipe(archive);
  for await (const entry of archive) files.push([entry.header.name, await text(entry)]);
  return files;
}
