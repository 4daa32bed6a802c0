/** The operator's routes: who is let in, and what the month's figures look like over HTTP. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { economicsJson } from "#economics/json.ts";
import { readMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";
import { addPoolHours } from "#pools/hours.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, dispatch, succeeded } from "#test/support/ledger.ts";

import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const OPERATOR_TOKEN = "operator token, 0123456789";
const URL = "/v1/admin/economics";

let t: TestGateway;
let open: TestGateway;
let later = 0;
const clock = { now: () => Date.now() + later };
beforeAll(async () => {
  t = await startTestGateway({ clock, config: { OPERATOR_TOKEN } });
  open = await startTestGateway();
});
afterAll(async () => {
  await t.stop();
  await open.stop();
});

const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const get = (headers: Record<string, string> = {}, url = URL, remoteAddress = "192.0.2.7") =>
  t.app.inject({ url, headers, remoteAddress });

/** Of a gateway without a token. */
const ask = async (remoteAddress: string, headers: Record<string, string> = {}) =>
  (await open.app.inject({ url: URL, remoteAddress, headers })).statusCode;

describe("the operator's routes", () => {
  test.each([
    ["no token", {}],
    ["another token", bearer(`${OPERATOR_TOKEN}x`)],
    ["a beginning of it", bearer(OPERATOR_TOKEN.slice(0, -1))],
    ["none after the scheme", { authorization: "Bearer " }],
    ["the token by itself", { authorization: OPERATOR_TOKEN }],
    ["another scheme", { authorization: `Basic ${Buffer.from(`operator:${OPERATOR_TOKEN}`).toString("base64")}` }],
  ])("refuse %s", async (_what, headers) => {
    const answer = await get(headers);
    expect(answer.statusCode).toBe(401);
    expect(answer.headers["www-authenticate"]).toBe("Bearer");
    expect(answer.json()).toMatchObject({ error: { code: "missing_key" } });
    expect(answer.body).not.toContain(OPERATOR_TOKEN);
  });

  test("refuse a customer's key, and are no route of a model's base URL", async () => {
    const { api_key } = await t.newKey();
    expect((await get(bearer(api_key))).statusCode).toBe(401);
    expect((await get(bearer(OPERATOR_TOKEN), `/m/arm${URL}`)).statusCode).toBe(404);
  });

  test("take the token from anywhere, and let no cache keep the answer", async () => {
    const answer = await get(bearer(OPERATOR_TOKEN));
    expect(answer.statusCode).toBe(200);
    expect(answer.headers["cache-control"]).toBe("no-store");
  });

  test("slow down who guesses, and not who knows", async () => {
    const guess = () => get(bearer("guess"), URL, "192.0.2.66");
    const codes = await Promise.all(Array.from({ length: 40 }, async () => (await guess()).statusCode));
    expect(codes.filter((code) => code === 401)).toHaveLength(30);
    expect(codes.filter((code) => code === 429)).toHaveLength(10);
    expect((await get(bearer(OPERATOR_TOKEN), URL, "192.0.2.66")).statusCode).toBe(200);
    expect((await get({}, URL, "192.0.2.67")).statusCode).toBe(401);
  });

  test("have a rate of their own", async () => {
    later += 60_000;
    const codes = await Promise.all(
      Array.from({ length: 130 }, async () => (await get(bearer(OPERATOR_TOKEN), `${URL}?month=no`)).statusCode),
    );
    expect(codes.filter((code) => code === 429).length).toBeGreaterThan(0);
    expect(codes.filter((code) => code === 400).length).toBeGreaterThanOrEqual(100);
    later += 60_000;
    expect((await get(bearer(OPERATOR_TOKEN))).statusCode).toBe(200);
  });

  test("without a token are for this machine, asked by its own name", async () => {
    expect(await ask("127.0.0.1")).toBe(200);
    expect(await ask("::1", { host: "[::1]:8080" })).toBe(200);
    expect(await ask("127.0.0.1", { host: "127.0.0.1:8080" })).toBe(200);
    expect(await ask("192.0.2.1")).toBe(403);
    expect(await ask("127.0.0.1", { "x-forwarded-for": "192.0.2.1" })).toBe(403);
    // Somebody's page had its own name lead here, and asks in the operator's browser.
    expect(await ask("127.0.0.1", { host: "attacker.example:8080" })).toBe(403);
    expect(await ask("127.0.0.1", { host: "localhost.attacker.example" })).toBe(403);
  });

  // nginx as it comes forwards from loopback, asks for 127.0.0.1, and says of nobody whom it asks for.
  test.each([
    ["a public address", { PUBLIC_URL: "http://192.0.2.1" }, 403],
    ["a proxy that is trusted", { TRUSTED_PROXIES: ["127.0.0.1"] }, 403],
    ["this machine's own address", { PUBLIC_URL: "http://[::1]:8080" }, 200],
  ])("without a token, and with %s in the settings", async (_what, config, status) => {
    const proxied = await startTestGateway({ config });
    try {
      for (const url of [URL, "/metrics", "/dashboard", "/v1/admin/overview"]) {
        const answer = await proxied.app.inject({ url, remoteAddress: "127.0.0.1", headers: { host: "127.0.0.1" } });
        expect([url, answer.statusCode]).toEqual([url, status]);
      }
    } finally {
      await proxied.stop();
    }
  });
});

describe("GET /v1/admin/economics", () => {
  test("is the month's report, the present one unless another is asked for", async () => {
    const key = await t.newKey();
    const { id } = await accept(t.db, key, { k: 2 });
    await dispatch(t.db, id);
    await settle(t.db, id, 1, succeeded(98));
    const seconds = { starting_s: 70, ready_s: 10, busy_s: 8, draining_s: 0, cold_starts: 1 };
    await addPoolHours(t.db, 0n, "pusht-small", new Date(), seconds);

    const month = monthOf(new Date(clock.now()));
    const body = (await get(bearer(OPERATOR_TOKEN))).json();
    const report = economicsJson(await readMonth(t.db, { month, gpuUsdPerHour: 3.95 }, new Date(clock.now())));
    expect(body).toEqual(JSON.parse(JSON.stringify(report)));
    expect(body).toMatchObject({
      month,
      complete: false,
      margin_floor: 0.7,
      pools: [
        {
          model: "pusht-small",
          frames: 98,
          revenue_mils: 490,
          cold_starts: 1,
          floor: { kind: "below the floor", options: [{}, {}, { way: "raise the price", notice_days: 30 }] },
          warm: { quoted_rent_usd_per_month: 2_840, break_even_frames: 5_680_000 },
        },
      ],
    });
    expect(body.published.cost_usd_per_frame.toFixed(6)).toBe("0.000105");
    expect((await get(bearer(OPERATOR_TOKEN), `${URL}?month=2026-01`)).json()).toMatchObject({
      month: "2026-01",
      total: { frames: 0, revenue_mils: 0 },
    });
  });

  test("says what a month looks like", async () => {
    const answer = await get(bearer(OPERATOR_TOKEN), `${URL}?month=2026-13`);
    expect([answer.statusCode, answer.json().detail]).toEqual([
      400,
      'month: expected one such as 2026-11, got "2026-13"',
    ]);
  });
});
