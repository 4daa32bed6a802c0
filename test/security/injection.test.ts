/**
 * SQL and what else breaks parsers, in every string that a caller can send: it is text like any other. Nothing is
 * executed, nothing crashes (no 5xx), and the books afterwards are those before.
 */
import type { LightMyRequestResponse } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { formBody, FORM_TYPE, framePng, type Part } from "#test/gateway/support/requests.ts";
import { actionsFile } from "#test/gateway/support/npy-writer.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

const TEXTS = [
  "'; DROP TABLE ledger_entries; --",
  "' OR '1'='1",
  "1); UPDATE accounts SET balance_mils = 1000000000; --",
  "'||(SELECT value FROM shared_secrets LIMIT 1)||'",
  "x' UNION SELECT key_hash::text FROM api_keys --",
  "$1",
  "$$; SELECT pg_sleep(10); $$",
  "\\'; SELECT 1; --",
  "%27%20OR%201%3D1",
  "a\u0000b",
  "\ud800",
  "\u001f",
  "../../../../etc/passwd",
  "{{7*7}}${7*7}<script>alert(1)</script>",
  "__proto__",
  "\u202e\u0000\uffff",
  "9".repeat(400),
] as const;

let t: TestGateway;
let victim: CreatedKey;
let attacker: CreatedKey;
let frame: Buffer;
beforeAll(async () => {
  t = await startTestGateway({
    config: {
      SIGNUP: "on",
      STRIPE_SECRET_KEY: "sk_test_none",
      STRIPE_WEBHOOK_SECRET: ["whsec_none"],
      STRIPE_API_BASE: "http://127.0.0.1:9",
    },
    rateLimiter: { take: async () => ({ allowed: true, remaining: 1, retry_after_ms: 0 }) },
  });
  victim = await t.newKey(mils(1_000_000));
  attacker = await t.newKey(mils(1_000_000));
  frame = await framePng();
});
afterAll(() => t.stop());

const headers = (): Record<string, string> => ({ authorization: `Bearer ${attacker.api_key}` });
const get = (url: string): Promise<LightMyRequestResponse> => t.app.inject({ method: "GET", url, headers: headers() });
const form = (
  url: string,
  parts: readonly Part[],
  more: Record<string, string> = {},
): Promise<LightMyRequestResponse> =>
  t.app.inject({
    method: "POST",
    url,
    headers: { ...headers(), "content-type": FORM_TYPE, ...more },
    payload: formBody(parts),
  });
const json = (url: string, body: unknown, more: Record<string, string> = {}): Promise<LightMyRequestResponse> =>
  t.app.inject({
    method: "POST",
    url,
    headers: { ...headers(), "content-type": "application/json", ...more },
    payload: JSON.stringify(body),
  });
const files = (): Part[] => [
  { name: "frame", body: frame, filename: "frame.png" },
  { name: "actions", body: actionsFile(48, 2), filename: "actions.npy" },
];
const rollout = (params: string, filename = "frame.png", more: Record<string, string> = {}) =>
  form(
    "/v1/rollouts",
    [
      { name: "start_frame", body: frame, filename },
      { name: "actions", body: actionsFile(48, 2), filename: "actions.npy" },
      { name: "params", body: params },
    ],
    more,
  );
/** As a header or a file name may carry it. */
const visible = (text: string): string => text.replaceAll(/[^\x20-\x7e]/g, "?");
const inPath = (text: string): string => encodeURIComponent(text.toWellFormed());

/** Every string that a caller can send. */
const FIELDS: Record<string, (text: string) => Promise<LightMyRequestResponse>> = {
  "params.model": (text) => rollout(JSON.stringify({ model: text })),
  "params.prompt": (text) => rollout(JSON.stringify({ prompt: text })),
  "params.seed": (text) => rollout(JSON.stringify({ seed: text })),
  "params.mode": (text) => rollout(JSON.stringify({ mode: text })),
  "params.webhook_url": (text) => rollout(JSON.stringify({ webhook_url: text })),
  "params, another field": (text) => rollout(JSON.stringify({ [text]: text })),
  "params that are no JSON": (text) => rollout(text),
  "the name of a file": (text) => rollout("{}", visible(text).replaceAll('"', "'")),
  "form field prompt": (text) => form("/v1/predict", [...files(), { name: "prompt", body: text }]),
  "form field model": (text) => form("/v1/predict", [...files(), { name: "model", body: text }]),
  "form field seed": (text) => form("/v1/predict", [...files(), { name: "seed", body: text }]),
  "form field guidance": (text) => form("/v1/predict/batch", [...files(), { name: "guidance", body: text }]),
  "a form field's name": (text) =>
    form("/v1/predict", [...files(), { name: visible(text).replaceAll('"', "'"), body: text }]),
  "Idempotency-Key": (text) => rollout('{"seed": 4}', "f.png", { "idempotency-key": visible(text) }),
  "X-Request-Id": (text) => rollout("{}", "f.png", { "x-request-id": visible(text) }),
  "User-Agent and X-Forwarded-For": (text) =>
    rollout("{}", "f.png", { "user-agent": visible(text), "x-forwarded-for": visible(text), host: visible(text) }),
  Authorization: (text) =>
    t.app.inject({ url: "/v1/billing/balance", headers: { authorization: `Bearer ${visible(text)}` } }),
  "a key with SQL in it": (text) =>
    t.app.inject({ url: "/v1/billing/balance", headers: { authorization: `Bearer dre_${visible(text)}` } }),
  "a rollout's id": (text) => get(`/v1/rollouts/${inPath(text)}`),
  "a rollout's id, to cancel": (text) =>
    t.app.inject({ method: "POST", url: `/v1/rollouts/${inPath(text)}/cancel`, headers: headers() }),
  "a rollout's wait": (text) => get(`/v1/rollouts/rollout_${"0".repeat(32)}?wait=${inPath(text)}`),
  "rollouts: after": (text) => get(`/v1/rollouts?after=${inPath(text)}`),
  "rollouts: status": (text) => get(`/v1/rollouts?status=${inPath(text)}`),
  "rollouts: model": (text) => get(`/v1/rollouts?model=${inPath(text)}`),
  "rollouts: dataset": (text) => get(`/v1/rollouts?dataset=${inPath(text)}`),
  "rollouts: created_after": (text) => get(`/v1/rollouts?created_after=${inPath(text)}`),
  "params.expires_in_s": (text) => rollout(JSON.stringify({ mode: "async", expires_in_s: text })),
  "a video's id": (text) => get(`/v1/rollouts/${inPath(text)}/video?candidate=0&expires=99&signature=00`),
  "a video's signature": (text) =>
    get(`/v1/rollouts/rollout_${"0".repeat(32)}/video?candidate=0&expires=99&signature=${inPath(text)}`),
  "a model's slug": (text) => get(`/v1/models/${inPath(text)}`),
  "a base URL's model": (text) => get(`/m/${inPath(text)}/v1/billing/balance`),
  "transactions: limit": (text) => get(`/v1/billing/transactions?limit=${inPath(text)}`),
  "transactions: after": (text) => get(`/v1/billing/transactions?after=${inPath(text)}`),
  "statement: month": (text) => get(`/v1/billing/statement?month=${inPath(text)}`),
  "statement: format": (text) => get(`/v1/billing/statement?month=2026-11&format=${inPath(text)}`),
  "top-up: amount": (text) => json("/v1/billing/topup", { amount_cents: text }),
  "a key's label": (text) => json("/v1/keys", { label: text.slice(0, 60) }),
  "a key's id": (text) =>
    t.app.inject({ method: "DELETE", url: `/v1/keys/${inPath(text)}?force=true`, headers: headers() }),
  "sign-up: e-mail": (text) => json("/v1/signup", { email: `${text}@example.com` }),
  "sign-up: e-mail, whole": (text) => json("/v1/signup", { email: text }),
  "webhook: signature": (text) => json("/v1/billing/webhook", {}, { "stripe-signature": visible(text) }),
  "webhook: body": (text) => json("/v1/billing/webhook", { id: text, type: text }, { "stripe-signature": "t=1,v1=00" }),
  "a path": (text) => get(`/${inPath(text)}`),
};

interface Seen {
  readonly tables: number;
  readonly functions: number;
  readonly victim: unknown;
  readonly secrets: number;
  readonly operators: number;
  readonly prices: number;
}

async function look(): Promise<Seen | undefined> {
  const [row] = await t.db.query<Seen>(
    `SELECT (SELECT count(*)::int FROM pg_class WHERE relnamespace = 'public'::regnamespace) AS tables,
            (SELECT count(*)::int FROM pg_proc WHERE pronamespace = 'public'::regnamespace) AS functions,
            (SELECT json_agg(a) FROM (SELECT balance_mils, seq, encode(head_hash, 'hex') FROM accounts
                                       WHERE customer_id = $1 ORDER BY account) a) AS victim,
            (SELECT count(*)::int FROM shared_secrets) AS secrets,
            (SELECT count(*)::int FROM operator_actions) AS operators,
            (SELECT count(*)::int FROM prices) AS prices`,
    [victim.customer_id],
  );
  return row;
}

describe.each(Object.entries(FIELDS))("in %s", (_field, send) => {
  test("SQL and odd characters are text like any other", async () => {
    const before = await look();
    for (const text of TEXTS) {
      const started = performance.now();
      const answer = await send(text);
      expect({ text, status: answer.statusCode, body: answer.statusCode >= 500 ? answer.body : "" }).toEqual({
        text,
        status: answer.statusCode,
        body: "",
      });
      // A sleep in the database would show.
      expect(performance.now() - started).toBeLessThan(9_000);
    }
    expect(await look()).toEqual(before);
  });
});

test("after all of that the books are clean and nobody got anything for nothing", async () => {
  expect(await verifyLedger(t.db)).toEqual([]);
  const [row] = await t.db.query<{ spent: bigint; balance: bigint }>(
    `SELECT (SELECT coalesce(sum(charge_mils - refunded_mils), 0)::bigint FROM rollouts WHERE customer_id = $1) AS spent,
            (SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance') AS balance`,
    [attacker.customer_id],
  );
  expect((row?.balance ?? 0n) + (row?.spent ?? 0n)).toBe(1_000_000n);
});
