/** `/v1/webhooks` as customers use it, and as others try to. */
import type { LightMyRequestResponse } from "fastify";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { WEBHOOK_ENDPOINTS_MAX } from "#contract/limits.ts";
import { WEBHOOK_EVENTS } from "#contract/webhooks.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { systemClock } from "#platform/clock.ts";
import { settle } from "#rollouts/settle.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { accept, cancelled } from "#test/support/ledger.ts";
import { signatureHeaders, webhookRoot } from "#webhooks/secrets.ts";

let t: TestGateway;
let owner: CreatedKey;
let other: CreatedKey;
/** How far the gateway's clock is ahead. */
let aheadMs = 0;
const nowMs = (): number => Date.now() + aheadMs;
beforeAll(async () => {
  t = await startTestGateway({ clock: { now: nowMs }, rateLimiter: createLocalRateLimiter(systemClock) });
  owner = await t.newKey();
  other = await t.newKey();
});
afterAll(() => t.stop());

const call = (
  method: "GET" | "POST" | "PATCH" | "DELETE",
  url: string,
  payload?: object,
  key: CreatedKey = owner,
): Promise<LightMyRequestResponse> =>
  t.app.inject({ method, url, headers: { authorization: `Bearer ${key.api_key}` }, ...(payload ? { payload } : {}) });

/** What an answer says but for the id of the request. */
const withoutId = ({ body, statusCode }: LightMyRequestResponse) => [statusCode, body.replaceAll(/req_[a-z0-9]+/g, "")];

const URL = "https://hooks.example.com/dream?token=1";
async function create(payload: object = {}, key: CreatedKey = owner) {
  const answer = await call("POST", "/v1/webhooks", { url: URL, ...payload }, key);
  expect(answer.statusCode, answer.body).toBe(201);
  return answer.json<{ id: string; secret: string }>();
}

test.for([
  [{ url: URL, events: "rollout.failed" }, /body\.events: expected an array, got "rollout\.failed"/],
  [{ url: URL, description: 7 }, /body\.description: expected a string or null, got 7/],
  [{ url: URL, description: "a\0b" }, /description/],
  [{ url: [URL] }, /body\.url: expected a string, got \["https/],
  [{ url: "https://hooks.example.com/\0" }, /url: expected a URL without control characters/],
  [{ url: URL, __proto__: null, events_: [] }, /body\.events_: there is no such field/],
] as const)("a body is taken as it was sent: %j is refused", async ([payload, message]) => {
  const answer = await call("POST", "/v1/webhooks", payload);
  expect([answer.statusCode, answer.json().error.message]).toEqual([422, expect.stringMatching(message)]);
});

test.for(["false", 0, null])("a webhook is not disabled by %j", async (enabled) => {
  const { id } = await create();
  const answer = await call("PATCH", `/v1/webhooks/${id}`, { enabled });
  expect(answer.json().error.message).toMatch(/^body\.enabled: expected true or false, got/);
  expect((await call("GET", `/v1/webhooks/${id}`)).json()).toMatchObject({ enabled: true });
  await call("DELETE", `/v1/webhooks/${id}`);
});

test("one is made with its secret, listed without it, changed, and ended", async () => {
  const answer = await call("POST", "/v1/webhooks", { url: URL });
  expect(answer.statusCode).toBe(201);
  expect(answer.headers["cache-control"]).toBe("no-store");
  const { secret, ...made } = answer.json<Record<string, unknown>>();
  expect(made).toMatchObject({
    object: "webhook",
    url: URL,
    events: [...WEBHOOK_EVENTS],
    description: null,
    enabled: true,
    disabled_at: null,
  });
  expect((await call("GET", "/v1/webhooks")).json()).toEqual({ object: "list", data: [made] });
  const path = `/v1/webhooks/${String(made["id"])}`;
  expect((await call("GET", path)).json()).toEqual(made);
  expect((await call("GET", `${path}/secret`)).json()).toEqual({
    object: "webhook_secret",
    secret,
    previous_signs_until: null,
  });

  const change = { events: ["dataset.completed", "rollout.failed", "rollout.failed"], description: "ops" };
  const events = ["rollout.failed", "dataset.completed"];
  expect((await call("PATCH", path, change)).json()).toEqual({ ...made, events, description: "ops" });
  const moved = { url: "https://new.example.com/", description: null };
  expect((await call("PATCH", path, moved)).json()).toEqual({ ...made, ...moved, events });
  expect((await call("PATCH", path, { enabled: false })).json()).toMatchObject({
    enabled: false,
    disabled_at: expect.any(Number),
    disabled_reason: "by its owner",
  });
  expect((await call("PATCH", path, { enabled: true })).json()).toEqual({ ...made, ...moved, events });

  expect((await call("DELETE", path)).json()).toEqual({ id: made["id"], object: "webhook", deleted: true });
  for (const method of ["GET", "DELETE"] as const) expect((await call(method, path)).statusCode).toBe(404);
  expect((await call("GET", "/v1/webhooks")).json()).toMatchObject({ data: [] });
});

test.for<[object, string]>([
  [{}, "url"],
  [{ url: "hooks.example.com" }, "expected a URL"],
  [{ url: "ftp://hooks.example.com/" }, "expected a URL"],
  [{ url: "https://user:pass@hooks.example.com/" }, "user name"],
  [{ url: `https://hooks.example.com/${"a".repeat(2000)}` }, "2000"],
  [{ url: URL, events: [] }, "events"],
  [{ url: URL, events: ["rollout.begun"] }, "events"],
  [{ url: URL, description: "d".repeat(201) }, "description"],
  [{ url: URL, secret: "whsec_mine" }, "no such field"],
  [{ url: URL, enabled: true }, "no such field"],
])("%o is refused, and what was expected is said", async ([payload, expected]) => {
  const answer = await call("POST", "/v1/webhooks", payload);
  expect(answer.statusCode).toBe(422);
  expect(answer.body).toContain(expected);
  expect((await call("GET", "/v1/webhooks")).json()).toMatchObject({ data: [] });
});

test("an address inside is refused at creation and at a change", async () => {
  const { id } = await create();
  for (const url of ["http://127.0.0.1/", "http://169.254.169.254/latest", "http://[::1]:80/", "http://localhost/"]) {
    for (const answer of [
      await call("POST", "/v1/webhooks", { url }),
      await call("PATCH", `/v1/webhooks/${id}`, { url }),
    ]) {
      expect([answer.statusCode, answer.json<{ error: { code: string } }>().error.code]).toEqual([
        422,
        "url_not_allowed",
      ]);
    }
  }
  await call("DELETE", `/v1/webhooks/${id}`);
});

test(`a customer may have ${WEBHOOK_ENDPOINTS_MAX}, also when many are made at once; deleted ones do not count`, async () => {
  const key = await t.newKey();
  const answers = await Promise.all(
    Array.from({ length: WEBHOOK_ENDPOINTS_MAX + 5 }, () => call("POST", "/v1/webhooks", { url: URL }, key)),
  );
  const made = answers.filter(({ statusCode }) => statusCode === 201);
  expect(made).toHaveLength(WEBHOOK_ENDPOINTS_MAX);
  expect(answers.filter(({ statusCode }) => statusCode === 409)).toHaveLength(5);
  await call("DELETE", `/v1/webhooks/${made[0]?.json<{ id: string }>().id}`, undefined, key);
  await create({}, key);
});

describe("rotation", () => {
  test("gives an endpoint a new secret; for a day both verify", async () => {
    const { id, secret: old } = await create();
    const rotated = (await call("POST", `/v1/webhooks/${id}/rotate-secret`)).json<Record<string, unknown>>();
    expect(Math.abs(Number(rotated["previous_signs_until"]) - (nowMs() + 86_400_000) / 1000)).toBeLessThan(10);
    expect(rotated["secret"]).not.toBe(old);
    expect((await call("GET", `/v1/webhooks/${id}/secret`)).json()).toEqual(rotated);

    const root = await webhookRoot(t.as("notifier"), () => Buffer.alloc(32));
    const body = Buffer.from("{}");
    const [row] = await t.db.query<{ generation: number; rotated_at: Date }>(
      "SELECT generation, rotated_at FROM webhook_endpoints WHERE id = $1",
      [id],
    );
    if (!row) throw new Error("it was made above");
    const headers = signatureHeaders(root, { kind: "endpoint", id: id as never }, row, {
      id: "msg_1",
      nowMs: nowMs(),
      body,
    });
    for (const secret of [old, String(rotated["secret"])]) new Webhook(secret).verify("{}", headers);
    aheadMs = 86_400_000;
    expect((await call("GET", `/v1/webhooks/${id}/secret`)).json()).toMatchObject({ previous_signs_until: null });
    aheadMs = 0;
    await call("DELETE", `/v1/webhooks/${id}`);
  });

  test("gives the customer a new secret for every webhook_url", async () => {
    const first = (await call("GET", "/v1/webhooks/signing-secret")).json<{ secret: string }>();
    expect(first).toMatchObject({ secret: expect.stringMatching(/^whsec_/), previous_signs_until: null });
    const second = (await call("POST", "/v1/webhooks/signing-secret/rotate")).json<{ secret: string }>();
    const third = (await call("POST", "/v1/webhooks/signing-secret/rotate")).json<{ secret: string }>();
    expect(new Set([first.secret, second.secret, third.secret]).size).toBe(3);
    expect((await call("GET", "/v1/webhooks/signing-secret")).json()).toEqual(third);
    const others = (await call("GET", "/v1/webhooks/signing-secret", undefined, other)).json<{ secret: string }>();
    expect([first.secret, third.secret]).not.toContain(others.secret);
  });
});

describe("the log of deliveries", () => {
  test("is paged through newest first, filtered, and shows attempts", async () => {
    const key = await t.newKey();
    const { id: endpoint } = await create({}, key);
    const rollouts: string[] = [];
    for (let i = 0; i < 5; i++) {
      const { id } = await accept(t.db, key, { webhook_url: i === 0 ? URL : null });
      await settle(t.db, id, null, cancelled);
      rollouts.push(id);
    }
    const list = async (query: string) =>
      (await call("GET", `/v1/webhooks/deliveries?${query}`, undefined, key)).json<{
        data: { id: string; rollout: string; endpoint: string | null; state: string }[];
        has_more: boolean;
        next: string | null;
      }>();
    const all = await list("limit=200");
    expect(all).toMatchObject({ object: "list", has_more: false, next: null });
    expect(all.data).toHaveLength(6);
    expect(all.data.map(({ rollout }) => rollout)).toEqual(
      [...rollouts, rollouts[0]].toReversed().sort((a, b) => rollouts.indexOf(b ?? "") - rollouts.indexOf(a ?? "")),
    );

    const paged: string[] = [];
    let next: string | null = null;
    do {
      const page = await list(`limit=2${next === null ? "" : `&after=${next}`}`);
      paged.push(...page.data.map(({ id }) => id));
      ({ next } = page);
    } while (next !== null);
    expect(paged).toEqual(all.data.map(({ id }) => id));

    expect((await list(`endpoint=${endpoint}`)).data).toHaveLength(5);
    expect((await list(`rollout=${rollouts[0]}`)).data).toHaveLength(2);
    expect((await list("state=failed")).data).toEqual([]);
    const [first] = all.data;
    if (!first) throw new Error("there are six");
    await t.db.query(
      "UPDATE webhook_deliveries SET state = 'failed', reason = 'test', finished_at = now() WHERE id = $1",
      [first.id],
    );
    await t.db.query(
      "INSERT INTO webhook_attempts (delivery_id, n, at, duration_ms, status, excerpt) VALUES ($1, 1, now(), 5, 500, 'no')",
      [first.id],
    );
    expect((await list(`state=failed&endpoint=${endpoint}`)).data.map(({ id }) => id)).toEqual([first.id]);
    const path = `/v1/webhooks/deliveries/${first.id}`;
    expect((await call("GET", path, undefined, key)).json()).toMatchObject({
      id: first.id,
      event: "rollout.cancelled",
      state: "failed",
      reason: "test",
      log: [{ n: 1, duration_ms: 5, status: 500, error: null, excerpt: "no" }],
    });
    const again = await call("POST", `${path}/resend`, undefined, key);
    expect([again.statusCode, again.json()]).toMatchObject([202, { state: "pending", reason: null, finished: null }]);
  });

  test.for([
    ["endpoint=mine", "endpoint: expected endpoint_"],
    ["rollout=endpoint_00000000000000000000000000000000", "rollout: expected rollout_"],
    ["after=2", "after: expected msg_"],
    ["state=lost", "state"],
    ["limit=0", "limit"],
    ["limit=201", "limit"],
  ] as const)("?%s is refused", async ([query, expected]) => {
    const answer = await call("GET", `/v1/webhooks/deliveries?${query}`);
    expect([answer.statusCode, answer.body]).toEqual([422, expect.stringContaining(expected)]);
  });
});

describe("another customer", () => {
  test("learns nothing of mine, and changes none of it", async () => {
    const { id } = await create({ description: "mine" });
    const { id: rollout } = await accept(t.db, owner);
    await settle(t.db, rollout, null, cancelled);
    const [delivery] = (await call("GET", `/v1/webhooks/deliveries?rollout=${rollout}`)).json<{
      data: { id: string }[];
    }>().data;
    const nobody = id.replaceAll(/[0-9a-f]{32}/g, "0".repeat(32));
    for (const [method, path, payload] of [
      ["GET", "", undefined],
      ["PATCH", "", { url: "https://theirs.example.com/" }],
      ["PATCH", "", { enabled: false }],
      ["DELETE", "", undefined],
      ["GET", "/secret", undefined],
      ["POST", "/rotate-secret", undefined],
    ] as const) {
      const mine = await call(method, `/v1/webhooks/${id}${path}`, payload, other);
      const none = await call(method, `/v1/webhooks/${nobody}${path}`, payload, other);
      expect(mine.statusCode).toBe(404);
      expect(withoutId(mine)).toEqual(withoutId(none));
    }
    for (const [method, path] of [
      ["GET", ""],
      ["POST", "/resend"],
    ] as const) {
      expect((await call(method, `/v1/webhooks/deliveries/${delivery?.id}${path}`, undefined, other)).statusCode).toBe(
        404,
      );
    }
    expect((await call("GET", "/v1/webhooks", undefined, other)).json()).toMatchObject({ data: [] });
    for (const query of ["", `?endpoint=${id}`, `?rollout=${rollout}`, `?after=${delivery?.id}`]) {
      expect((await call("GET", `/v1/webhooks/deliveries${query}`, undefined, other)).json()).toMatchObject({
        data: [],
      });
    }
    expect((await call("GET", `/v1/webhooks/${id}`)).json()).toMatchObject({ url: URL, enabled: true });
  });

  test("nobody gets in without a key", async () => {
    for (const url of ["/v1/webhooks", "/v1/webhooks/signing-secret", "/v1/webhooks/deliveries"]) {
      expect((await t.app.inject({ method: "GET", url })).statusCode).toBe(401);
    }
  });
});

test("no secret is in any table, and the one that all follow from in no role's sight but the gateway's and the notifier's", async () => {
  const { secret } = await create();
  const customers = (await call("GET", "/v1/webhooks/signing-secret")).json<{ secret: string }>().secret;
  const tables = await t.db.query<{ name: string }>(
    "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
  );
  expect(tables.length).toBeGreaterThan(15);
  for (const { name } of tables) {
    const rows = await t.db.query<{ row: string }>(`SELECT t::text AS row FROM "${name}" t`);
    const text = rows.map(({ row }) => row).join("\n");
    for (const each of [secret, customers]) {
      const key = Buffer.from(each.slice("whsec_".length), "base64");
      for (const spelling of [each.slice("whsec_".length), key.toString("hex")]) expect(text).not.toContain(spelling);
    }
  }
  for (const part of ["settlement", "scheduler", "runner"] as const) {
    await expect(t.as(part).query("SELECT * FROM shared_secrets")).rejects.toThrow("permission denied");
  }
});

test("all of it is in the OpenAPI document, under every base URL in use", async () => {
  const { paths } = (await t.app.inject("/openapi.json")).json<{ paths: Record<string, Record<string, object>> }>();
  const documented = Object.entries(paths)
    .filter(([path]) => path.startsWith("/v1/webhooks"))
    .flatMap(([path, methods]) => Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`));
  expect(documented.sort()).toEqual(
    [
      "GET /v1/webhooks",
      "POST /v1/webhooks",
      "GET /v1/webhooks/{id}",
      "PATCH /v1/webhooks/{id}",
      "DELETE /v1/webhooks/{id}",
      "GET /v1/webhooks/{id}/secret",
      "POST /v1/webhooks/{id}/rotate-secret",
      "POST /v1/webhooks/{id}/test",
      "GET /v1/webhooks/signing-secret",
      "POST /v1/webhooks/signing-secret/rotate",
      "GET /v1/webhooks/deliveries",
      "GET /v1/webhooks/deliveries/{id}",
      "POST /v1/webhooks/deliveries/{id}/resend",
    ].sort(),
  );
  expect((await call("GET", "/m/pusher/v1/webhooks")).statusCode).toBe(200);
});
