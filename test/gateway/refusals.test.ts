/** Every malformed request: refused with what was expected, nothing charged, nothing queued, nothing left behind. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import { mintToken } from "#keys/token.ts";

import { type Books, booksOf } from "./support/books.ts";
import { actionsFile, npy, someActions } from "./support/npy-writer.ts";
import {
  FORM_TYPE,
  formBody,
  framePng,
  getWithKey,
  type Part,
  postForm,
  predictParts,
  rolloutParts,
} from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let key: CreatedKey;
let before: Books;
beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
  before = await booksOf(t, key.customer_id);
});
afterAll(() => t.stop());

const replaced = async (name: string, body: Buffer | string): Promise<Part[]> =>
  (await predictParts()).map((part) => (part.name === name ? { ...part, body } : part));
const without = async (name: string): Promise<Part[]> => (await predictParts()).filter((part) => part.name !== name);
const withPart = async (part: Part): Promise<Part[]> => [...(await predictParts()), part];

describe("forms", () => {
  const cases: readonly (readonly [string, () => Promise<Part[]>, RegExp])[] = [
    ["no frame", () => without("frame"), /^frame: this part is required; got actions$/],
    ["no actions", () => without("actions"), /^actions: this part is required; got frame$/],
    ["an empty form", async () => [], /^actions: this part is required; got an empty form$/],
    [
      "an unknown field",
      () => withPart({ name: "sede", body: "1" }),
      /^"sede": unknown part; expected frame, actions, seed, /,
    ],
    ["a field of another route", () => withPart({ name: "params", body: "{}" }), /^"params": unknown part/],
    ["a field named like a property", () => withPart({ name: "__proto__", body: "1" }), /forbidden name|unknown part/],
    [
      "two frames",
      async () => withPart({ name: "frame", body: await framePng() }),
      /^frame: expected once, got 2 parts/,
    ],
    [
      "two seeds",
      async () => [...(await withPart({ name: "seed", body: "1" })), { name: "seed", body: "2" }],
      /^seed: expected once/,
    ],
    [
      "a batch",
      async () => withPart({ name: "actions", body: actionsFile(48, 2) }),
      /^actions: expected once, got 2 parts/,
    ],
    ["a seed of words", () => withPart({ name: "seed", body: "seven" }), /^seed: expected an integer .* got "seven"/],
    [
      "a seed of bytes",
      () => withPart({ name: "seed", body: Buffer.from([0xff, 0xfe]) }),
      /^seed: expected UTF-8 text/,
    ],
    [
      "no steps",
      () => withPart({ name: "num_steps", body: "0" }),
      /^num_steps: expected an integer from 1 to 100, got "0"/,
    ],
    [
      "much guidance",
      () => withPart({ name: "guidance", body: "21" }),
      /^guidance: expected a number from 0 to 20, got "21"/,
    ],
    ["a long prompt", () => withPart({ name: "prompt", body: "x".repeat(513) }), /^prompt: expected at most 512 bytes/],
    [
      "a very long prompt",
      () => withPart({ name: "prompt", body: "x".repeat(20_000) }),
      /^prompt: expected at most 16384 bytes/,
    ],
    ["an unknown model", () => withPart({ name: "model", body: "cosmos" }), /^model: expected one of arm, pusher/],
    ["a frame of text", () => replaced("frame", "hello"), /^frame: expected a PNG or JPEG/],
    ["an empty frame", () => replaced("frame", ""), /^frame: expected a PNG or JPEG image, got no bytes/],
    ["actions of text", () => replaced("actions", "hello"), /^actions: expected a \.npy file/],
    [
      "actions of another model",
      () => replaced("actions", actionsFile(48, 7)),
      /^actions: expected shape \(T, 2\), got shape \(48, 7\)/,
    ],
    [
      "an odd number of actions",
      () => replaced("actions", actionsFile(47, 2)),
      /positive multiple of 12, got shape \(47, 2\)/,
    ],
    ["too many actions", () => replaced("actions", actionsFile(252, 2)), /T at most 240/],
    [
      "actions with NaN",
      () => replaced("actions", npy([...someActions(11, 2), NaN, 0], [12, 2])),
      /got NaN at \[11, 0\]/,
    ],
    [
      "a hundred parts",
      async () => [...(await predictParts()), ...Array.from({ length: 100 }, () => ({ name: "seed", body: "1" }))],
      /expected at most \d+ parts|expected once/,
    ],
  ];

  test.for(cases)("POST /v1/predict refuses %s", async ([, parts, message]) => {
    const answer = await postForm(t.app, "/v1/predict", key.api_key, await parts());
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toMatch(message);
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("POST /v1/predict/batch refuses candidates of different lengths", async () => {
    const parts = [
      ...(await predictParts()),
      { name: "actions", body: actionsFile(24, 2), filename: "actions_001.npy" },
    ];
    const answer = await postForm(t.app, "/v1/predict/batch", key.api_key, parts);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toBe("actions 1: expected 48 actions as in the first part, got 24");
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("POST /v1/predict/batch is not scored", async () => {
    const parts = await withPart({ name: "score", body: "true" });
    const answer = await postForm(t.app, "/v1/predict/batch", key.api_key, parts);
    expect(answer.statusCode).toBe(422);
    expect(answer.json()).toMatchObject({
      detail: "score: a batch is not scored; send its candidates one by one to be scored",
      error: { code: "not_supported" },
    });
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test.for([
    ["not json", /^params: expected a JSON object/],
    ['{"score": 1}', /^params.score: expected true or false, got 1/],
    ['{"score": true, "model": "arm"}', /^score: frames of arm are 48 × 64, expected at least 64 pixels a side/],
    ['{"mode": "later"}', /^params.mode: expected "sync" or "async"/],
    ['{"mode": "async", "expires_in_s": 0}', /^params.expires_in_s: expected an integer from 1 to 604800/],
    ['{"webhook_url": "ftp://example.com"}', /^params.webhook_url: expected a URL such as https:/],
    ['{"webhook_url": "http://127.0.0.1/hook"}', /^params.webhook_url: .* not an address in the public internet/],
    ['{"mode": "async", "webhook_url": "https://10.0.0.8"}', /^params.webhook_url: .* not an address/],
    ['{"steps": 5}', /^params: unknown field "steps"/],
  ] as const)("POST /v1/rollouts refuses params %s", async ([params, message]) => {
    const answer = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts(params));
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toMatch(message);
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test.for([
    ["no content type", undefined],
    ["JSON", "application/json"],
    ["a urlencoded form", "application/x-www-form-urlencoded"],
    ["no boundary", "multipart/form-data"],
  ] as const)("refuses %s with 415", async ([, type]) => {
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/predict",
      headers: { authorization: `Bearer ${key.api_key}`, ...(type ? { "content-type": type } : {}) },
      payload: "{}",
    });
    expect(answer.statusCode).toBe(415);
    expect(answer.json().detail).toMatch(/^expected Content-Type multipart\/form-data with a boundary, got /);
  });

  test.for([
    ["that ends early", (body: Buffer) => body.subarray(0, -40)],
    [
      "with another boundary",
      (body: Buffer) => Buffer.from(body.toString("latin1").replaceAll("test-boundary", "other"), "latin1"),
    ],
    ["of nonsense", () => Buffer.from("nonsense")],
  ] as const)("refuses a body %s", async ([, damage]) => {
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/predict",
      headers: { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE },
      payload: damage(formBody(await predictParts())),
    });
    expect([400, 422]).toContain(answer.statusCode);
    expect(answer.json().error.request_id).toBe(answer.headers["x-dreamengine-request-id"]);
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test("refuses a body over 32 MB with 413, announced or not", async () => {
    const parts = await replaced("frame", Buffer.alloc(32 * 1024 * 1024 + 1));
    const answer = await postForm(t.app, "/v1/predict", key.api_key, parts);
    expect(answer.statusCode).toBe(413);
    expect(answer.json()).toMatchObject({
      detail: "expected a body of at most 32 MB",
      error: { code: "payload_too_large" },
    });
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });
});

describe("money", () => {
  test("402 names both amounts, before anything is stored", async () => {
    const poor = await t.newKey(mils(244));
    const books = await booksOf(t, poor.customer_id);
    for (const [url, parts] of [
      ["/v1/predict", await predictParts()],
      ["/v1/predict/batch", await predictParts()],
      ["/v1/rollouts", await rolloutParts("{}")],
    ] as const) {
      const answer = await postForm(t.app, url, poor.api_key, parts);
      expect(answer.statusCode).toBe(402);
      expect(answer.json().detail).toMatchObject({
        balance_mils: 244,
        requested_mils: 245,
        balance_cents: 2,
        requested_cents: 2,
      });
      expect(answer.json().error.code).toBe("insufficient_credits");
    }
    expect(t.worker.taken).toEqual([]);
    const after = await booksOf(t, poor.customer_id);
    expect({ ...after, blobs: books.blobs }).toEqual(books);
  });

  test("a balance that pays for nothing is refused by the headers alone", async () => {
    const poor = await t.newKey(mils(64));
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/predict",
      headers: { authorization: `Bearer ${poor.api_key}`, "content-type": FORM_TYPE },
      payload: "this is no form, and nobody looks",
    });
    expect(answer.statusCode).toBe(402);
    expect(answer.json().detail).toMatchObject({ balance_mils: 64, requested_mils: 65 });
  });

  test("402 names a debt, which a top-up pays first", async () => {
    const owing = await t.newKey(mils(0));
    await t.db.query("SELECT post_ledger_entry($1, 'debt', 'clawback', 5000, 'pi_owing', 'disputed')", [
      owing.customer_id,
    ]);
    const answer = await postForm(t.app, "/v1/predict", owing.api_key, await predictParts());
    expect([answer.statusCode, answer.json().detail.balance_mils]).toEqual([402, 0]);
    expect(answer.json().detail.message).toContain("$0.5000 are owed, which a top-up pays first");
  });
});

const balanceWith = (authorization: string | undefined) =>
  t.app.inject({ url: "/v1/billing/balance", headers: authorization === undefined ? {} : { authorization } });

describe("keys", () => {
  test("each wrong key is told what is wrong with it", async () => {
    const revoked = await t.newKey();
    await revokeKey(t.db, revoked.key_id);
    const expired = await createKey(
      t.db,
      { customer: "expired@example.com", expires_at: new Date(Date.now() - 1_000) },
      randomBytes,
    );
    const flipped = key.api_key.slice(0, 20) + (key.api_key[20] === "a" ? "b" : "a") + key.api_key.slice(21);
    for (const [authorization, code, message] of [
      [undefined, "missing_key", /expected an API key: Authorization: Bearer dre_/],
      ["Basic dXNlcjpwYXNz", "malformed_key", /expected "Authorization: Bearer dre_…", got another scheme/],
      ["Bearer", "malformed_key", /Bearer without one key/],
      ["Bearer one two", "malformed_key", /Bearer without one key/],
      ["Bearer sk_live_123", "malformed_key", /must start with dre_/],
      [`Bearer ${key.api_key.slice(0, -1)}`, "malformed_key", /was it cut off\?/],
      [`Bearer ${flipped}`, "malformed_key", /checksum|typo|mistyped/i],
      [`Bearer ${mintToken(randomBytes).token}`, "unknown_key", /is not known here/],
      [`Bearer ${expired.api_key}`, "expired_key", /has expired/],
      [`Bearer ${revoked.api_key}`, "revoked_key", /has been revoked/],
    ] as const) {
      const answer = await balanceWith(authorization);
      expect(answer.statusCode).toBe(401);
      expect(answer.json().error.code).toBe(code);
      expect(answer.json().detail).toMatch(message);
      expect(answer.body).not.toContain(key.api_key.slice(4, 20));
    }
  });

  test("a key is looked at before the body", async () => {
    const answer = await t.app.inject({ method: "POST", url: "/v1/predict", payload: "anything" });
    expect(answer.statusCode).toBe(401);
  });

  test("AUTH=off takes requests without a key as the local customer, and keys still as keys", async () => {
    const local = await startTestGateway({
      config: { AUTH: "off", PUBLIC_URL: undefined, DEFAULT_MODEL: undefined, OPERATOR_TOKEN: undefined },
    });
    try {
      expect((await local.app.inject({ url: "/v1/billing/balance" })).json()).toEqual({
        customer_id: "cus_local",
        balance_mils: 10_000_000,
        balance_cents: 100_000,
        balance_usd: 1_000,
        debt_mils: 0,
      });
      const own = await local.newKey(mils(7));
      expect((await getWithKey(local.app, "/v1/billing/balance", own.api_key)).json().customer_id).toBe(
        own.customer_id,
      );
      expect((await getWithKey(local.app, "/v1/billing/balance", "nonsense")).statusCode).toBe(401);
    } finally {
      await local.stop();
    }
  });

  test("failed attempts from one address are slowed down, right keys are not", async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => balanceWith(`Bearer dre_wrong${i}`)));
    const slowed = answers.find(({ statusCode }) => statusCode === 429);
    expect(Number(slowed?.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    expect(slowed?.headers).toMatchObject({
      "ratelimit-policy": '"failed authentications";q=30;w=15',
      ratelimit: '"failed authentications";r=0;t=1',
    });
    expect((await balanceWith(`Bearer ${key.api_key}`)).statusCode).toBe(200);
  });
});

describe("rates", () => {
  test("over the key's limit: 429 with seconds to wait, then it passes again", async () => {
    const slow = await t.newKey(mils(0), { rate_per_s: 1, burst: 2 });
    const answers = [];
    for (let i = 0; i < 3; i++) answers.push(await getWithKey(t.app, "/v1/billing/balance", slow.api_key));
    expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 200, 429]);
    expect(answers[0]?.headers).toMatchObject({ "ratelimit-policy": '"key";q=2;w=2', ratelimit: '"key";r=1;t=2' });
    const refused = answers[2];
    expect(refused?.headers["retry-after"]).toBe("1");
    expect(refused?.headers["ratelimit"]).toBe('"key";r=0;t=1');
    expect(refused?.json()).toMatchObject({
      detail: "too many requests: the limit is 1 requests a second with a burst of 2 on this key; try again in 1 s",
      error: { code: "rate_limited" },
    });
  });

  test("every key has 50 a second and a burst of 200 unless it says otherwise", async () => {
    const answer = await getWithKey(t.app, "/v1/billing/balance", (await t.newKey()).api_key);
    expect(answer.headers["ratelimit-policy"]).toBe('"key";q=200;w=4');
  });
});

describe("routes", () => {
  test.for([
    ["GET", "/nowhere", 404, "not_found"],
    ["GET", "/v1/nowhere", 404, "not_found"],
    ["GET", "/m/pusher/nowhere", 404, "not_found"],
    ["GET", "/m/cosmos/v1/models", 404, "model_not_found"],
    ["POST", "/m/cosmos/v1/predict", 404, "model_not_found"],
    ["GET", "/v1/models/cosmos", 404, "model_not_found"],
    ["GET", "/v1/predict", 405, "method_not_allowed"],
    ["DELETE", "/v1/billing/balance", 405, "method_not_allowed"],
    ["PUT", "/m/pusher/v1/predict", 405, "method_not_allowed"],
    ["GET", "/%", 400, "invalid_request"],
  ] as const)("%s %s is %i %s", async ([method, url, status, code]) => {
    const answer = await t.app.inject({ method, url });
    expect(answer.statusCode).toBe(status);
    expect(answer.json().error).toMatchObject({ code, request_id: answer.headers["x-dreamengine-request-id"] });
    expect(answer.headers["x-dreamengine-request-id"]).toMatch(/^req_[0-9a-f]{24}$/);
    expect(answer.json().detail).toBe(answer.json().error.message);
  });

  test("405 says which methods there are", async () => {
    const answer = await t.app.inject({ method: "GET", url: "/v1/predict" });
    expect(answer.headers.allow).toBe("POST");
    expect(answer.json().detail).toBe("/v1/predict: expected POST, got GET");
  });

  test("a caller's own request id is not taken for ours", async () => {
    const answer = await t.app.inject({
      url: "/healthz",
      headers: { "x-request-id": "theirs", "x-dreamengine-request-id": "theirs" },
    });
    expect(answer.headers["x-dreamengine-request-id"]).toMatch(/^req_/);
  });

  test("a query that does not fit names the field, what it takes and what came", async () => {
    const answer = await getWithKey(t.app, "/v1/billing/transactions?limit=many", key.api_key);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toBe('querystring.limit: must be integer, got "many"');
  });

  test("a body of another type is told which one the route takes", async () => {
    const headers = { authorization: `Bearer ${key.api_key}`, "content-type": "application/xml" };
    for (const [url, detail] of [
      ["/v1/keys", "expected Content-Type application/json, got application/xml"],
      ["/v1/predict", "expected Content-Type multipart/form-data with a boundary, got application/xml"],
    ] as const) {
      const answer = await t.app.inject({ method: "POST", url, headers, payload: "x" });
      expect([answer.statusCode, answer.json().detail]).toEqual([415, detail]);
    }
  });

  test("the path of a video without what signs it is told to be no signed link", async () => {
    for (const query of ["", "?candidate=0", "?candidate=x&expires=1&signature=a"]) {
      const answer = await t.app.inject({ url: `/v1/rollouts/rol_${"a".repeat(24)}/video${query}` });
      expect(answer.statusCode).toBe(403);
      expect(answer.json()).toMatchObject({
        detail: expect.stringContaining("use video_url exactly as it was returned") as string,
        error: { code: "video_url_invalid" },
      });
    }
  });

  test("without its database, only a route that charges speaks of charges", async () => {
    let away = false;
    const refused = Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" });
    const broken = await startTestGateway({}, (db) => ({
      ...db,
      query: (text, params) => (away ? Promise.reject(refused) : db.query(text, params)),
    }));
    try {
      const { api_key } = await broken.newKey();
      away = true;
      const read = await getWithKey(broken.app, "/v1/billing/balance", api_key);
      const paid = await postForm(broken.app, "/v1/predict", api_key, await predictParts());
      expect([read.statusCode, paid.statusCode]).toEqual([503, 503]);
      expect(read.json()).toMatchObject({ detail: "the database cannot be reached now; try again" });
      expect(paid.json().detail).toContain("what was charged for this request, if anything, is refunded");
    } finally {
      away = false;
      await broken.stop();
    }
  });

  test("an error of ours shows nothing of its insides", async () => {
    const broken = await startTestGateway({
      pools: { poolStates: () => Promise.reject(new Error("secret insides")) },
    });
    try {
      const answer = await broken.app.inject({ url: "/v1/models" });
      expect(answer.statusCode).toBe(500);
      expect(answer.json().error.code).toBe("internal");
      expect(answer.body).not.toContain("secret");
    } finally {
      await broken.stop();
    }
  });
});
