/** Who sees the operator's page and what feeds it, what a session is worth, and what a look costs. */
import { createHash } from "node:crypto";
import { Script } from "node:vm";

import type { LightMyRequestResponse } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { readDashboardPage } from "#gateway/dashboard/page.ts";
import type { Overview } from "#gateway/overview/overview.ts";
import type { Database } from "#platform/database.ts";

import { addMarkup, BUNDLES, fillScene, lookAtPools, MARKUP_EMAIL, type Scene } from "./support/operator-scene.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const TOKEN = "operator-token-of-the-tests";
const COOKIE = "dream_engine_operator";
const SESSION_S = 8 * 3_600;

let t: TestGateway;
let scene: Scene;
let failed: string;
let nowMs = Date.now();
let queries = 0;
const counted = (db: Database): Database => ({
  ...db,
  query: (text, params) => {
    queries += 1;
    return db.query(text, params);
  },
});
beforeAll(async () => {
  t = await startTestGateway(
    { config: { OPERATOR_TOKEN: TOKEN }, bundles: BUNDLES, clock: { now: () => nowMs } },
    counted,
  );
  scene = await fillScene(t.db);
  failed = await addMarkup(t.db);
  await lookAtPools(t.db, 1, nowMs);
});
afterAll(() => t.stop());

type Headers = Record<string, string>;
const get = (url: string, headers: Headers = {}, remoteAddress = "192.0.2.1"): Promise<LightMyRequestResponse> =>
  t.app.inject({ method: "GET", url, headers, remoteAddress });
const signIn = (token: string, remoteAddress = "192.0.2.2", from: TestGateway = t): Promise<LightMyRequestResponse> =>
  from.app.inject({
    method: "POST",
    url: "/dashboard/session",
    headers: { "content-type": "application/x-www-form-urlencoded" },
    payload: new URLSearchParams({ token }).toString(),
    remoteAddress,
  });
/** As a browser would send it. */
const cookieOf = (answer: LightMyRequestResponse): string =>
  String(answer.headers["set-cookie"]).split(";", 1)[0] ?? "";
const bearer = (token: string): Headers => ({ authorization: `Bearer ${token}` });

const READ_BY_THE_PAGE = ["/v1/admin/overview", `/v1/admin/rollouts/rollout_${"0".repeat(32)}`] as const;

describe.each(READ_BY_THE_PAGE)("%s", (url) => {
  test("is refused without a token, with another one, with a customer's key, and with sessions that are none", async () => {
    const { api_key } = await t.newKey();
    const session = cookieOf(await signIn(TOKEN));
    const [expires = "", signature = ""] = session.slice(COOKIE.length + 1).split(".");
    const refused: Record<string, Headers> = {
      nothing: {},
      "another token": bearer(`${TOKEN}x`),
      "a customer's key": bearer(api_key),
      "the token as a cookie": { cookie: `${COOKIE}=${TOKEN}` },
      "a customer's key as a cookie": { cookie: `${COOKIE}=${api_key}` },
      "an empty session": { cookie: `${COOKIE}=` },
      "a session that was made longer": { cookie: `${COOKIE}=${Number(expires) + 3_600}.${signature}` },
      "a session with another signature": { cookie: `${COOKIE}=${expires}.${"0".repeat(64)}` },
      "a session under another name": { cookie: session.replace(COOKIE, "other") },
      "a session in the address": {},
    };
    for (const [what, headers] of Object.entries(refused)) {
      const at = what === "a session in the address" ? `${url}?${session}&token=${TOKEN}` : url;
      // Each from an address of its own, for none of them to be refused for another reason.
      const answer = await get(at, headers, `198.51.100.${Object.keys(refused).indexOf(what) + 1}`);
      expect({ what, status: answer.statusCode }).toEqual({ what, status: 401 });
      expect(answer.body).not.toContain("cus_");
      expect(answer.headers["www-authenticate"], "a browser's own password box stays away").toBe("Bearer");
    }
    for (const headers of [bearer(TOKEN), { cookie: session }, { cookie: `a=b; ${COOKIE}=forged; ${session}; c=d` }]) {
      expect((await get(url, headers)).statusCode).not.toBe(401);
    }
  });

  test("is refused once the session is over", async () => {
    const cookie = cookieOf(await signIn(TOKEN));
    expect((await get(url, { cookie })).statusCode).not.toBe(401);
    nowMs += SESSION_S * 1000 - 2_000;
    expect((await get(url, { cookie })).statusCode).not.toBe(401);
    nowMs += 3_000;
    expect((await get(url, { cookie })).statusCode).toBe(401);
    nowMs -= SESSION_S * 1000;
  });
});

describe("a session", () => {
  test("is a cookie that no script reads and no other site sends, without the token in it", async () => {
    const answer = await signIn(TOKEN);
    expect(answer.statusCode).toBe(303);
    expect(answer.headers.location).toBe("/dashboard");
    const cookie = String(answer.headers["set-cookie"]);
    for (const attribute of ["HttpOnly", "SameSite=Strict", `Max-Age=${SESSION_S}`, "Path=/"]) {
      expect(cookie).toContain(attribute);
    }
    expect(cookie).not.toContain(TOKEN);
    // Plain HTTP here; a browser would drop it.
    expect(cookie).not.toContain("Secure");
  });

  test("ends with the token that it was made with, and is Secure where the server is reached by HTTPS", async () => {
    const cookie = cookieOf(await signIn(TOKEN));
    const other = await startTestGateway({
      config: { OPERATOR_TOKEN: "the operator's next token", PUBLIC_URL: "https://dream.example.com" },
      clock: { now: () => nowMs },
    });
    try {
      // The same secret, as two gateways of one database have.
      await other.db.query(
        "UPDATE shared_secrets SET value = $1 WHERE name = 'dashboard_session'",
        (await t.db.query<{ value: Buffer }>("SELECT value FROM shared_secrets WHERE name = 'dashboard_session'")).map(
          ({ value }) => value,
        ),
      );
      const { url } = await other.listen();
      expect((await fetch(`${url}/v1/admin/overview`, { headers: { cookie } })).status).toBe(401);
      const made = await signIn("the operator's next token", "192.0.2.2", other);
      expect(String(made.headers["set-cookie"])).toContain("; Secure");
    } finally {
      await other.stop();
    }
  });

  test("opens no other route of the operator's", async () => {
    const cookie = cookieOf(await signIn(TOKEN));
    for (const url of ["/metrics", "/v1/admin/economics"]) {
      expect((await get(url, { cookie })).statusCode, url).toBe(401);
      expect((await get(url, bearer(TOKEN))).statusCode, url).toBe(200);
    }
  });

  test("ends when its browser signs out", async () => {
    const answer = await t.app.inject({ method: "POST", url: "/dashboard/session/end" });
    expect(answer.statusCode).toBe(303);
    expect(String(answer.headers["set-cookie"])).toMatch(/^dream_engine_operator=; Max-Age=0;/);
  });

  test("is not guessed: wrong tokens of an address are limited, the right one is not", async () => {
    const answers = [];
    for (let i = 0; i < 40; i++) answers.push((await signIn(`guess number ${i}`, "203.0.113.9")).statusCode);
    expect(new Set(answers)).toEqual(new Set([401, 429]));
    expect((await signIn(TOKEN, "203.0.113.9")).statusCode).toBe(303);
  });
});

describe("GET /dashboard", () => {
  test("asks for the token by a form that posts it, and shows nothing else", async () => {
    const answer = await get("/dashboard");
    expect(answer.statusCode).toBe(401);
    expect(answer.body).toContain('<form method="post" action="/dashboard/session">');
    expect(answer.body).not.toContain("<script");
    expect(answer.body).not.toContain("/v1/admin");
    expect((await get(`/dashboard?token=${TOKEN}`)).statusCode, "an address is no place for a token").toBe(401);
  });

  test("is one document that loads nothing and runs nothing but its own script", async () => {
    const { statusCode, body, headers } = await get("/dashboard", bearer(TOKEN));
    expect(statusCode).toBe(200);
    expect(headers["cache-control"]).toBe("no-store");
    const policy = String(headers["content-security-policy"]);
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/unsafe|\*|https?:/);
    const [, style = ""] = /<style>(.*?)<\/style>/s.exec(body) ?? [];
    const [, script = ""] = /<script type="module">(.*?)<\/script>/s.exec(body) ?? [];
    for (const text of [style, script]) {
      expect(text.length).toBeGreaterThan(1_000);
      expect(policy).toContain(`'sha256-${createHash("sha256").update(text).digest("base64")}'`);
    }
    // What it names of others: the namespaces of SVG, and nothing to load.
    const named = [...body.matchAll(/https?:\/\/[^"' )]+/g)].map(([address]) => address);
    expect(new Set(named)).toEqual(new Set(["http://www.w3.org/2000/svg"]));
    expect(body).not.toMatch(/<(link|script)[^>]*\b(src|href)="(?!data:)/);
    expect(body).not.toMatch(/ (style|on\w+)="/);
    // Joined from several files, it has to be a script still: no name twice, nothing left to import.
    expect(() => new Script(script)).not.toThrow();
    expect(readDashboardPage().html).toBe(body);
  });

  test("without a token it is shown to this machine alone", async () => {
    const open = await startTestGateway();
    try {
      const from = (remoteAddress: string, headers: Headers) =>
        open.app.inject({ url: "/dashboard", remoteAddress, headers });
      expect((await from("127.0.0.1", { host: "localhost:8080" })).statusCode).toBe(200);
      expect((await from("192.0.2.1", { host: "localhost:8080" })).statusCode).toBe(403);
      expect((await from("127.0.0.1", { host: "localhost", "x-forwarded-for": "192.0.2.1" })).statusCode).toBe(403);
      expect((await from("127.0.0.1", { host: "somebody.example" })).statusCode).toBe(403);
    } finally {
      await open.stop();
    }
  });
});

const overview = async (): Promise<Overview> => (await get("/v1/admin/overview", bearer(TOKEN))).json<Overview>();

describe("GET /v1/admin/overview", () => {
  test("tells of pools, backlog, refunds and books what the database says", async () => {
    nowMs += 60_000;
    await lookAtPools(t.db, 1, nowMs);
    await scene.add(1, { lane: "bulk" });
    await scene.add(1, { lane: "bulk", k: 4 });
    nowMs += 1_000;
    const { pools, backlog, refunds, books, events, latency, dispatched, money } = await overview();
    expect(pools.map(({ model, state, ready }) => [model, state, ready])).toEqual([
      ["dreamdojo-2b", "warm", 2],
      ["pusht-small", "warm", 1],
    ]);
    expect(backlog.lanes.map(({ lane, rollouts, samples, frames }) => [lane, rollouts, samples, frames])).toEqual([
      ["realtime", 1, 8, 392],
      ["bulk", 2, 5, 245],
    ]);
    expect(backlog.largest.map(({ address, realtime, bulk }) => [address, realtime, bulk])).toEqual([
      [MARKUP_EMAIL, 1, 0],
      ["grace@robots.example", 0, 2],
    ]);
    expect(dispatched.map(({ lane, rollouts, samples }) => [lane, rollouts, samples])).toEqual([
      ["realtime", 2, 16],
      ["bulk", 4, 4],
    ]);
    expect(latency.ends.find(({ model, lane }) => model === "pusht-small" && lane === "bulk")).toMatchObject({
      ended: 4,
    });
    const [row] = await t.db.query<{ count: number; usd: string }>(
      "SELECT count(*)::int AS count, (sum(refunded_mils) / 10000)::numeric(10, 4)::text AS usd FROM rollouts WHERE refunded_mils > 0",
    );
    expect(refunds).toMatchObject({ rollouts: row?.count, usd: row?.usd, is_more: false });
    expect(refunds.latest.find(({ rollout_id }) => rollout_id === failed)).toMatchObject({
      address: MARKUP_EMAIL,
      why: "engine_failed",
      usd: "0.0245",
    });
    expect(books).toMatchObject({ problems: 0, unsettled: 9, stripe: false });
    expect(money?.total.revenue_usd).toBeGreaterThan(1);
    expect(events.map(({ kind }) => kind)).toContain("complaint");
  });

  test("tells of one rollout each mil that it moved, and of none what is not there", async () => {
    const answer = await get(`/v1/admin/rollouts/${failed}`, bearer(TOKEN));
    expect(answer.json()).toMatchObject({
      rollout_id: failed,
      address: MARKUP_EMAIL,
      error_code: "engine_failed",
      entries: [
        { kind: "debit", usd: "-0.0245" },
        { kind: "refund", usd: "0.0245" },
      ],
    });
    for (const id of [`rollout_${"0".repeat(32)}`, "rollout_x", "%00"]) {
      expect((await get(`/v1/admin/rollouts/${id}`, bearer(TOKEN))).statusCode).toBe(404);
    }
  });

  test("costs ten windows that look at once, and again within the second, what it costs one", async () => {
    nowMs += 60_000;
    queries = 0;
    await overview();
    const one = queries;
    expect(one).toBeGreaterThan(5);
    nowMs += 60_000;
    queries = 0;
    await Promise.all(Array.from({ length: 10 }, overview));
    nowMs += 900;
    await Promise.all(Array.from({ length: 10 }, overview));
    expect(queries).toBe(one);
  });
});
