/** What must never be written down: keys, signing secrets, passwords, prompts' owners. Requests that carry them, then a search. */
import { spawn } from "node:child_process";
import { once } from "node:events";

import { afterAll, beforeAll, expect, test } from "vitest";

import { freePort } from "#cli/ports.ts";
import { mils } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { mintToken } from "#keys/token.ts";
import { formBody, FORM_TYPE, predictParts } from "#test/gateway/support/requests.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { randomBytes } from "node:crypto";

const STRIPE_KEY = "sk_test_neverwritedown0123456789";
const WEBHOOK_SECRET = "whsec_neverwritedown0123456789";
const OPERATOR_TOKEN = "operator-never-write-down-0123456789";

let database: TestDatabase;
let key: CreatedKey;
let folder: string;
beforeAll(async () => {
  database = await createTestDatabase();
  key = await createKey(database.db, { customer: "secret@example.com", initial_credits: mils(245) }, randomBytes);
  folder = mkdtempSync(join(tmpdir(), "dream-secrets-"));
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await database.drop();
});

const bearer = (token: string): { authorization: string } => ({ authorization: `Bearer ${token}` });

test("no key, secret or password is in a log, an answer, a job or a metric, at the chattiest level", async () => {
  const port = await freePort();
  const gateway = spawn(process.execPath, ["src/cli/main.ts", "gateway"], {
    env: {
      PATH: process.env["PATH"],
      NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
      PORT: String(port),
      DATABASE_URL: database.url,
      DATA_DIR: folder,
      LOG_LEVEL: "trace",
      STRIPE_SECRET_KEY: STRIPE_KEY,
      STRIPE_WEBHOOK_SECRET: WEBHOOK_SECRET,
      // Nobody listens there, so the error path is taken.
      STRIPE_API_BASE: "http://127.0.0.1:9",
      OPERATOR_TOKEN,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let written = "";
  for (const stream of [gateway.stdout, gateway.stderr])
    stream.on("data", (chunk: Buffer) => (written += String(chunk)));
  const exited = once(gateway, "exit");
  const base = `http://127.0.0.1:${port}`;
  await expect
    .poll(
      () =>
        fetch(`${base}/readyz`).then(
          ({ ok }) => ok,
          () => false,
        ),
      { timeout: 30_000, interval: 100 },
    )
    .toBe(true);

  const unknown = mintToken(randomBytes).token;
  const answers: string[] = [];
  const call = async (path: string, init: RequestInit = {}): Promise<number> => {
    const answer = await fetch(base + path, { ...init, signal: AbortSignal.timeout(20_000) });
    answers.push(JSON.stringify([...answer.headers]) + (await answer.text()));
    return answer.status;
  };
  const json = { "content-type": "application/json" };
  const topup = { method: "POST", body: '{"amount_cents": 500}' };
  expect(await call("/v1/billing/balance", { headers: bearer(key.api_key) })).toBe(200);
  expect(await call("/v1/billing/balance", { headers: bearer(unknown) })).toBe(401);
  expect(await call("/v1/billing/balance", { headers: { authorization: key.api_key } })).toBe(401);
  expect(await call(`/v1/rollouts/${key.api_key}`, { headers: bearer(key.api_key) })).toBe(404);
  expect(await call(`/v1/billing/transactions?limit=${key.api_key}`, { headers: bearer(key.api_key) })).toBe(422);
  expect(await call("/v1/billing/topup", { ...topup, headers: { ...bearer(key.api_key), ...json } })).toBe(503);
  expect(
    await call("/v1/billing/webhook", {
      method: "POST",
      body: "{}",
      headers: { "stripe-signature": `t=1,v1=${WEBHOOK_SECRET}` },
    }),
  ).toBe(400);
  expect(await call("/metrics", { headers: bearer(OPERATOR_TOKEN) })).toBe(200);
  expect(await call("/metrics", { headers: bearer(`${OPERATOR_TOKEN}x`) })).toBe(401);
  const form = {
    method: "POST",
    redirect: "manual",
    headers: { "content-type": "application/x-www-form-urlencoded" },
  } as const;
  expect(await call("/dashboard/session", { ...form, body: `token=${OPERATOR_TOKEN}` })).toBe(303);
  expect(await call("/dashboard/session", { ...form, body: `token=${OPERATOR_TOKEN}x` })).toBe(401);
  expect(await call("/dashboard", { headers: bearer(OPERATOR_TOKEN) })).toBe(200);
  const session = /dream_engine_operator=([^;]{70,})/.exec(answers.join("\n"))?.[1] ?? "";
  expect(await call("/v1/admin/overview", { headers: { cookie: `dream_engine_operator=${session}` } })).toBe(200);
  // A form with the key in every field, refused; and one that is accepted and hangs up before anybody runs it.
  const bad = formBody([...(await predictParts({ seed: key.api_key, model: key.api_key }))]);
  expect(
    await call("/v1/predict", {
      method: "POST",
      body: new Uint8Array(bad),
      headers: { ...bearer(key.api_key), "content-type": FORM_TYPE },
    }),
  ).toBe(422);
  await database.db.query(`ALTER TABLE rollouts RENAME TO rollouts_away`);
  expect(await call(`/v1/rollouts/rollout_${"0".repeat(32)}`, { headers: bearer(key.api_key) })).toBe(500);
  await database.db.query(`ALTER TABLE rollouts_away RENAME TO rollouts`);

  gateway.kill("SIGTERM");
  await exited;
  const tables = await database.db.query<{ name: string }>(
    `SELECT table_name AS name FROM information_schema.tables
      WHERE table_schema = 'bullmq' AND table_type = 'BASE TABLE'`,
  );
  expect(tables.length).toBeGreaterThan(0);
  const jobs: { row: string }[] = [];
  for (const { name } of tables)
    jobs.push(...(await database.db.query<{ row: string }>(`SELECT t::text AS row FROM bullmq."${name}" t`)));
  const { password } = new URL(database.url);
  const everything = { logs: written, answers: answers.join("\n"), jobs: jobs.map(({ row }) => row).join("\n") };
  expect(everything.logs).toContain('"status":401'); // it did write
  expect({ found: everything.logs.includes(session) }).toEqual({ found: false });
  for (const [where, text] of Object.entries(everything)) {
    for (const secret of [key.api_key, unknown, STRIPE_KEY, WEBHOOK_SECRET, OPERATOR_TOKEN, `:${password}@`]) {
      expect({ where, found: text.includes(secret) ? secret.slice(0, 8) : null }).toEqual({ where, found: null });
    }
  }
}, 90_000);
