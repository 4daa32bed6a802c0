/** What the gateway tells: models, status, money, documentation, metrics. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";

import { framePng, getWithKey, postForm, predictParts } from "./support/requests.ts";
import { actionsFile } from "./support/npy-writer.ts";
import { ENGINE_WALL_MS } from "./support/scripted-worker.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const OPERATOR_TOKEN = "operator-token-of-the-tests";

let t: TestGateway;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway({
    config: { AUTH: "on", PUBLIC_URL: "https://dream.example", DEFAULT_MODEL: undefined, OPERATOR_TOKEN },
  });
  key = await t.newKey(mils(1_000));
});
afterAll(() => t.stop());
beforeEach(() => {
  t.worker.fate = "succeed";
});

const get = async (url: string) => (await t.app.inject({ url })).json();

describe("models", () => {
  test("are listed without a key, the one of the base URL as active", async () => {
    for (const [prefix, active] of [
      ["", "pusher"],
      ["/m/pusher", "pusher"],
      ["/m/arm", "arm"],
    ]) {
      const list = await get(`${prefix}/v1/models`);
      expect(list.object).toBe("list");
      expect(list.data.map((entry: { slug: string }) => entry.slug)).toEqual(["arm", "pusher"]);
      expect(list.data.filter((entry: { active: boolean }) => entry.active)).toMatchObject([{ slug: active }]);
      expect((await get(`${prefix}/v1/models/${active}`)).active).toBe(true);
    }
  });

  test("say everything that the contract names", async () => {
    const entry = await get("/v1/models/arm");
    expect(entry).toEqual({
      slug: "arm",
      name: "Model arm",
      provider: "Tests",
      upstream_provider: {
        key: "tests",
        name: "Tests Incorporated",
        short_name: "Tests",
        logo_url: "",
        homepage: "https://example.com",
        huggingface_org: "",
      },
      category: "Robotics",
      summary: "A summary",
      description: "A description",
      intended_use: "Tests",
      training_data: "None",
      license: "Apache-2.0",
      links: { paper: "https://example.com/paper" },
      price_per_frame_usd: 0.0005,
      is_flagship: false,
      is_benchmarked: false,
      active: false,
      base_url: "https://dream.example/m/arm",
      status: "cold",
      spec: {
        model_size: "1M",
        embodiment: "point",
        action_dim: 7,
        chunk_size: 16,
        resolution: [48, 64],
        default_num_steps: 4,
        default_guidance: 0,
        runner: "onnxruntime",
        output_kind: "video",
        encoder_name: "none",
        temporal_compression: 1,
        ckpt_repo: "",
        base_model: "",
        tokenizer: "bytes",
        fps: 10,
        action_unit: "metres",
      },
      benchmark: null,
    });
  });

  test("an unknown one is 404 with those that there are", async () => {
    expect((await get("/v1/models/cosmos")).detail).toBe('no model "cosmos"; this server has arm, pusher');
  });

  test("GET /v1/specs lists them with the default price", async () => {
    const specs = await get("/v1/specs");
    expect(specs.default_price_usd_per_frame).toBe(0.0005);
    expect(specs.specs).toMatchObject([
      { slug: "arm", price_per_frame_usd: 0.0005 },
      { slug: "pusher", price_per_frame_usd: 0.0005 },
    ]);
  });

  test("DEFAULT_MODEL chooses the model of the bare base URL, and has to exist", async () => {
    const config = { AUTH: "on" as const, PUBLIC_URL: undefined, OPERATOR_TOKEN: undefined };
    const other = await startTestGateway({ config: { ...config, DEFAULT_MODEL: "arm" } });
    const list = (await other.app.inject({ url: "/v1/models" })).json();
    expect(list.data.find((entry: { active: boolean }) => entry.active).slug).toBe("arm");
    await other.stop();
  });
});

test("GET /v1/status tells true percentiles, the queue and the pools", async () => {
  const clock = { now: () => now };
  let now = Date.now();
  const own = await startTestGateway({ clock });
  try {
    const caller = await own.newKey();
    for (const seed of ["1", "2", "3"]) {
      expect((await postForm(own.app, "/v1/predict", caller.api_key, await predictParts({ seed }))).statusCode).toBe(
        200,
      );
    }
    await own.db
      .query(`UPDATE rollouts SET finished_at = finished_at - interval '25 hours', created_at = created_at - interval '25 hours'
                         WHERE params ->> 'seed' = '3'`);
    own.worker.fate = "hang";
    const pending = postForm(own.app, "/v1/predict", caller.api_key, await predictParts({ seed: "4" }));
    while (own.worker.taken.length < 4) await new Promise((resolve) => setTimeout(resolve, 10));
    own.pools["pusher"] = "warming";
    now += 10_000;
    const status = (await own.app.inject({ url: "/v1/status" })).json();
    expect(status).toMatchObject({
      status: "ok",
      model: "pusher",
      uptime_s: 10,
      pool: "warming",
      queue_depth: 1,
      engine_wall_ms: { p50: ENGINE_WALL_MS, p99: ENGINE_WALL_MS, count: 2 },
      request_ms: { count: 2 },
      models: [
        { slug: "arm", pool: "cold", queue_depth: 0, engine_wall_ms: { p50: null, p99: null, count: 0 } },
        { slug: "pusher" },
      ],
    });
    expect((await own.app.inject({ url: "/m/arm/v1/status" })).json()).toMatchObject({ model: "arm", pool: "cold" });

    // Kept for a few seconds, however often it is asked.
    own.pools["pusher"] = "warm";
    expect((await own.app.inject({ url: "/v1/status" })).json().pool).toBe("warming");
    now += 10_000;
    expect((await own.app.inject({ url: "/v1/status" })).json().pool).toBe("warm");
    await own.worker.finishHanging();
    await pending;
  } finally {
    await own.stop();
  }
});

describe("billing", () => {
  test("shows the balance in mils, cents rounded half up, and dollars", async () => {
    const other = await t.newKey(mils(1_250));
    expect((await getWithKey(t.app, "/v1/billing/balance", other.api_key)).json()).toEqual({
      customer_id: other.customer_id,
      balance_mils: 1_250,
      balance_cents: 13,
      balance_usd: 0.125,
      debt_mils: 0,
    });
  });

  test("shows debits, refunds and credits, newest first, and adds up", async () => {
    const own = await t.newKey(mils(1_000));
    const paid = await postForm(t.app, "/v1/predict", own.api_key, await predictParts());
    t.worker.fate = { fail: "engine_failed" };
    const failed = await postForm(t.app, "/v1/predict", own.api_key, await predictParts({ seed: "1" }));
    const { transactions } = (await getWithKey(t.app, "/v1/billing/transactions", own.api_key)).json();
    const debit = { kind: "debit", amount_mils: -245, amount_cents: -2, amount_usd: -0.0245 };
    expect(transactions).toMatchObject([
      { id: failed.headers["x-dreamengine-request-id"], kind: "refund", amount_mils: 245, balance_after_mils: 755 },
      { id: failed.headers["x-dreamengine-request-id"], ...debit, balance_after_mils: 510 },
      {
        id: paid.headers["x-dreamengine-request-id"],
        ...debit,
        balance_after_mils: 755,
        detail: "predict · pusher · 49 frames",
      },
      { kind: "credit", amount_mils: 1_000, amount_cents: 10, balance_after_usd: 0.1 },
    ]);
    for (const { ts } of transactions) expect(Math.abs(ts - Date.now() / 1000)).toBeLessThan(60);
    const page = async (limit: string) =>
      (await getWithKey(t.app, `/v1/billing/transactions?limit=${limit}`, own.api_key)).json().transactions.length;
    expect([await page("2"), await page("0"), await page("-5"), await page("9999")]).toEqual([2, 1, 1, 4]);
  });

  test("says how credits are added where cards are not taken", async () => {
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/billing/topup",
      headers: { authorization: `Bearer ${key.api_key}` },
      payload: { amount_cents: 500 },
    });
    expect(answer.statusCode).toBe(503);
    expect(answer.json()).toMatchObject({ error: { code: "topup_not_configured" } });
    expect(answer.json().detail).toContain(`credits grant ${key.customer_id}`);
  });
});

describe("health", () => {
  test("alive, under every base URL", async () => {
    expect(await get("/healthz")).toEqual({ status: "ok" });
    expect(await get("/m/arm/healthz")).toEqual({ status: "ok" });
  });

  test("ready when database and queue answer, and not otherwise", async () => {
    const ready = await t.app.inject({ url: "/readyz" });
    expect([ready.statusCode, ready.json()]).toEqual([200, { status: "ready", database: "ok", queue: "ok" }]);

    const own = await startTestGateway();
    await own.queues.stop();
    const not = await own.app.inject({ url: "/readyz" });
    expect([not.statusCode, not.json()]).toEqual([503, { status: "not ready", database: "ok", queue: "unreachable" }]);
    await own.stop();
  });
});

const metrics = (headers: Record<string, string>, remoteAddress = "127.0.0.1", app = t.app) =>
  app.inject({ url: "/metrics", headers, remoteAddress });

describe("metrics", () => {
  test("with an operator token are for whoever has it", async () => {
    expect((await metrics({})).statusCode).toBe(401);
    expect((await metrics({ authorization: "Bearer wrong" })).statusCode).toBe(401);
    const answer = await metrics({ authorization: `Bearer ${OPERATOR_TOKEN}` }, "192.0.2.1");
    expect(answer.statusCode).toBe(200);
  });

  test("without one are for this machine alone, and not for a proxy on it", async () => {
    const own = await startTestGateway();
    expect((await metrics({}, "127.0.0.1", own.app)).statusCode).toBe(200);
    expect((await metrics({}, "::1", own.app)).statusCode).toBe(200);
    expect((await metrics({}, "192.0.2.1", own.app)).statusCode).toBe(403);
    expect((await metrics({ "x-forwarded-for": "192.0.2.1" }, "127.0.0.1", own.app)).statusCode).toBe(403);
    await own.stop();
  });

  test("labels come from our routes, never from the caller", async () => {
    for (let i = 0; i < 5; i++) {
      await t.app.inject({ url: `/probe-${i}` });
      await t.app.inject({ url: `/v1/models/probe-${i}` });
      await t.app.inject({ method: "PROPFIND" as "GET", url: "/v1/models" });
    }
    const text = (await metrics({ authorization: `Bearer ${OPERATOR_TOKEN}` })).body;
    expect(text).not.toContain("probe-");
    expect(text).toMatch(/dream_http_request_duration_seconds_count\{[^}]*route="unmatched"[^}]*\} \d/);
    expect(text).toMatch(/route="\/v1\/models\/:slug"[^}]*status="404"/);
  });
});

describe("documentation", () => {
  test("the OpenAPI document names every route once, with forms, answers and errors", async () => {
    const document = await get("/openapi.json");
    expect(document.openapi).toBe("3.1.0");
    expect(Object.keys(document.paths).toSorted()).toEqual([
      "/healthz",
      "/readyz",
      "/v1/billing/balance",
      "/v1/billing/prices",
      "/v1/billing/statement",
      "/v1/billing/topup",
      "/v1/billing/transactions",
      "/v1/billing/webhook",
      "/v1/datasets",
      "/v1/datasets/{id}",
      "/v1/datasets/{id}/cancel",
      "/v1/datasets/{id}/pause",
      "/v1/datasets/{id}/results",
      "/v1/datasets/{id}/resume",
      "/v1/datasets/{id}/retry",
      "/v1/datasets/{id}/rows",
      "/v1/datasets/{id}/video",
      "/v1/keys",
      "/v1/keys/{id}",
      "/v1/models",
      "/v1/models/{slug}",
      "/v1/predict",
      "/v1/predict/batch",
      "/v1/rollouts",
      "/v1/rollouts/{id}",
      "/v1/rollouts/{id}/cancel",
      "/v1/rollouts/{id}/video",
      "/v1/signup",
      "/v1/specs",
      "/v1/status",
      "/v1/uploads",
      "/v1/uploads/{id}",
      "/v1/webhooks",
      "/v1/webhooks/deliveries",
      "/v1/webhooks/deliveries/{id}",
      "/v1/webhooks/deliveries/{id}/resend",
      "/v1/webhooks/signing-secret",
      "/v1/webhooks/signing-secret/rotate",
      "/v1/webhooks/{id}",
      "/v1/webhooks/{id}/rotate-secret",
      "/v1/webhooks/{id}/secret",
      "/v1/webhooks/{id}/test",
    ]);
    const predict = document.paths["/v1/predict"].post;
    expect(Object.keys(predict.requestBody.content)).toEqual(["multipart/form-data"]);
    expect(Object.keys(predict.requestBody.content["multipart/form-data"].schema.properties)).toEqual(
      expect.arrayContaining(["frame", "actions", "seed", "num_steps", "guidance", "prompt", "model"]),
    );
    expect(Object.keys(predict.responses["200"].content)).toEqual(["video/mp4"]);
    for (const path of Object.values<Record<string, { summary?: string; responses: Record<string, unknown> }>>(
      document.paths,
    )) {
      for (const operation of Object.values(path)) {
        expect(operation.summary).toBeTruthy();
        expect(Object.keys(operation.responses)).toEqual(expect.arrayContaining(["4XX", "5XX"]));
      }
    }
    expect(document.paths["/v1/models"].get.security).toEqual([]);
    expect(predict.security ?? document.security).toEqual([{ key: [] }]);
  });

  test("/docs and everything it loads come from this server", async () => {
    const page = await t.app.inject({ url: "/docs" });
    const html = page.statusCode === 302 ? await t.app.inject({ url: String(page.headers.location) }) : page;
    expect(html.statusCode).toBe(200);
    expect(html.headers["content-security-policy"]).toMatch(/default-src 'self'/);
    const assets = [...html.body.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1] ?? "");
    expect(assets.length).toBeGreaterThan(3);
    for (const asset of assets) {
      expect(asset).not.toMatch(/^(https?:)?\/\//);
      expect((await t.app.inject({ url: new URL(asset, "http://x/docs/").pathname })).statusCode).toBe(200);
    }
  });
});

test("no answer can be sniffed, framed or cached by accident", async () => {
  const answer = await getWithKey(t.app, "/v1/billing/balance", key.api_key);
  expect(answer.headers).toMatchObject({
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
  });
});

test("logs name no key, no body and no signature", async () => {
  const lines: string[] = [];
  const { pino } = await import("pino");
  const own = await startTestGateway({
    log: pino({ level: "trace" }, { write: (line: string) => void lines.push(line) }),
  });
  try {
    const caller = await own.newKey();
    const parts = [
      { name: "start_frame", body: await framePng(), filename: "f.png" },
      { name: "actions", body: actionsFile(12, 2), filename: "a.npy" },
      { name: "params", body: '{"prompt": "a private thought"}' },
    ];
    const made = (await postForm(own.app, "/v1/rollouts", caller.api_key, parts, { "x-request-id": "theirs" })).json();
    const link = new URL(made.video_url);
    await own.app.inject({ url: link.pathname + link.search });
    const written = lines.join("");
    expect(written).toContain('"caller_request_id":"theirs"');
    expect(written).toContain(caller.customer_id);
    expect(written).not.toContain(caller.api_key.slice(4, 24));
    expect(written).not.toContain("a private thought");
    expect(written).not.toContain(link.searchParams.get("signature"));
  } finally {
    await own.stop();
  }
});
