/** One customer never sees, ends or spends what is another's, whatever they know or guess of it. */
import type { LightMyRequestResponse } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { getWithKey, postForm, predictParts, rolloutParts } from "#test/gateway/support/requests.ts";
import { booksOf } from "#test/gateway/support/books.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

let t: TestGateway;
let owner: CreatedKey;
let other: CreatedKey;
let rolloutId: string;
let videoUrl: URL;
beforeAll(async () => {
  t = await startTestGateway();
  owner = await t.newKey(mils(50_000));
  other = await t.newKey(mils(70_000));
  const answer = await postForm(t.app, "/v1/rollouts", owner.api_key, await rolloutParts('{"seed": 7}'), {
    "idempotency-key": "theirs",
  });
  expect(answer.statusCode).toBe(200);
  const { id, video_url } = answer.json<{ id: string; video_url: string }>();
  rolloutId = id;
  videoUrl = new URL(video_url);
});
afterAll(() => t.stop());

const withoutId = ({ body }: LightMyRequestResponse): string => body.replaceAll(/req_[a-z0-9]+/g, "");
const asOther = (url: string): Promise<LightMyRequestResponse> => getWithKey(t.app, url, other.api_key);
const link = (url: URL): Promise<LightMyRequestResponse> => t.app.inject({ url: url.pathname + url.search });

describe("another customer's key", () => {
  test("finds a rollout of mine no more than one that there never was", async () => {
    const mine = await asOther(`/v1/rollouts/${rolloutId}`);
    const nobodys = await asOther(`/v1/rollouts/rollout_${"0".repeat(32)}`);
    expect(mine.statusCode).toBe(404);
    expect(withoutId(mine)).toBe(withoutId(nobodys));
    expect((await getWithKey(t.app, `/v1/rollouts/${rolloutId}`, owner.api_key)).statusCode).toBe(200);
  });

  test("sees its own balance, transactions and statement, and nothing of mine in them", async () => {
    expect((await asOther("/v1/billing/balance")).json()).toMatchObject({
      customer_id: other.customer_id,
      balance_mils: 70_000,
    });
    const month = new Date().toISOString().slice(0, 7);
    const pages = [
      await asOther("/v1/billing/transactions?limit=200"),
      await asOther(`/v1/billing/transactions?customer_id=${owner.customer_id}`),
      await asOther(`/v1/billing/statement?month=${month}`),
      await asOther(`/v1/billing/statement?month=${month}&format=csv&customer_id=${owner.customer_id}`),
      await asOther("/v1/keys"),
      await asOther(`/v1/keys?customer=${owner.customer_id}`),
    ];
    const [debit] = await t.db.query<{ reference: string }>(
      `SELECT reference FROM ledger_entries WHERE customer_id = $1 AND kind = 'debit'`,
      [owner.customer_id],
    );
    for (const { statusCode, body } of pages) {
      expect([200, 422]).toContain(statusCode); // a parameter that there is not may be refused
      for (const secret of [owner.customer_id, owner.key_id, owner.prefix, rolloutId, debit?.reference ?? "none"]) {
        expect(body).not.toContain(secret);
      }
    }
  });

  test("cannot page into my entries with a cursor of mine", async () => {
    const mine = (await getWithKey(t.app, "/v1/billing/transactions?limit=1", owner.api_key)).json<{
      next_cursor: string | null;
    }>();
    expect(mine.next_cursor).toEqual(expect.any(String));
    const answer = await asOther(`/v1/billing/transactions?after=${mine.next_cursor}`);
    expect([200, 422]).toContain(answer.statusCode);
    expect(answer.body).not.toContain(owner.key_id);
  });

  test("cannot end a key of mine, and does not learn that there is one", async () => {
    const end = (id: string): Promise<LightMyRequestResponse> =>
      t.app.inject({
        method: "DELETE",
        url: `/v1/keys/${id}?force=true`,
        headers: { authorization: `Bearer ${other.api_key}` },
      });
    const mine = await end(owner.key_id);
    expect(mine.statusCode).toBe(404);
    expect((await end(`key_${"0".repeat(24)}`)).statusCode).toBe(404);
    expect((await getWithKey(t.app, "/v1/billing/balance", owner.api_key)).statusCode).toBe(200);
  });

  test("under my idempotency key and with my payload gets a rollout of its own, at its own cost", async () => {
    const before = await booksOf(t, owner.customer_id);
    const answer = await postForm(t.app, "/v1/rollouts", other.api_key, await rolloutParts('{"seed": 7}'), {
      "idempotency-key": "theirs",
    });
    expect(answer.statusCode).toBe(200);
    expect(answer.json<{ id: string }>().id).not.toBe(rolloutId);
    expect((await asOther("/v1/billing/balance")).json()).toMatchObject({ balance_mils: 70_000 - 245 });
    expect((await booksOf(t, owner.customer_id)).balance).toBe(before.balance);
  });

  test("is not given a finished video of mine that got lost on the way", async () => {
    const parts = await predictParts({ seed: "99" });
    expect((await postForm(t.app, "/v1/predict", owner.api_key, parts)).statusCode).toBe(200);
    await t.db.query(`UPDATE rollouts SET delivered_at = NULL WHERE customer_id = $1`, [owner.customer_id]);
    const before = await booksOf(t, other.customer_id);
    const answer = await postForm(t.app, "/v1/predict", other.api_key, parts);
    expect(answer.statusCode).toBe(200);
    expect((await booksOf(t, other.customer_id)).balance).toBe(before.balance - 245n);
  });
});

describe("a signed link", () => {
  test("works as it was given, and for nothing else", async () => {
    expect((await link(videoUrl)).statusCode).toBe(200);
    const changes: [string, string][] = [
      ["candidate", "1"],
      ["candidate", "-1"],
      ["expires", String(Number(videoUrl.searchParams.get("expires")) + 1)],
      ["expires", "99999999999"],
      ["expires", "1e99"],
      ["signature", ""],
      ["signature", "0".repeat(64)],
    ];
    for (const [name, value] of changes) {
      const changed = new URL(videoUrl);
      changed.searchParams.set(name, value);
      const { statusCode, headers } = await link(changed);
      expect({ name, value, refused: [403, 422].includes(statusCode) }).toEqual({ name, value, refused: true });
      expect(headers["content-type"]).toContain("application/json");
    }
  });

  test("with any one digit of its signature changed is refused", async () => {
    const signature = videoUrl.searchParams.get("signature") ?? "";
    expect(signature).toMatch(/^[0-9a-f]{64}$/);
    for (let at = 0; at < signature.length; at++) {
      const changed = new URL(videoUrl);
      const digit = (Number.parseInt(signature.charAt(at), 16) ^ 1).toString(16);
      changed.searchParams.set("signature", signature.slice(0, at) + digit + signature.slice(at + 1));
      expect((await link(changed)).statusCode).toBe(403);
    }
    const twice = new URL(videoUrl);
    twice.searchParams.append("signature", signature);
    expect((await link(twice)).statusCode).toBeGreaterThanOrEqual(400);
  });

  test("of one customer's rollout does not open another's", async () => {
    const answer = await postForm(t.app, "/v1/rollouts", other.api_key, await rolloutParts('{"seed": 8}'));
    const theirs = new URL(answer.json<{ video_url: string }>().video_url);
    const crossed = new URL(theirs);
    crossed.search = videoUrl.search;
    expect((await link(crossed)).statusCode).toBe(403);
    expect((await link(theirs)).statusCode).toBe(200);
  });
});

test("ids are too random to be guessed, and do not count anything", async () => {
  const { api_key } = await t.newKey();
  const ids: string[] = [];
  for (let seed = 0; seed < 12; seed++) {
    const answer = await postForm(t.app, "/v1/rollouts", api_key, await rolloutParts(JSON.stringify({ seed })));
    ids.push(answer.json<{ id: string }>().id.replace("rollout_", ""));
  }
  for (const id of ids) expect(id).toMatch(/^[0-9a-f]{32}$/);
  // No digit stands still over twelve ids, as one of a counter, a clock or a machine would; 32 of them by chance: 16⁻¹¹ each.
  for (let at = 0; at < 32; at++) expect(new Set(ids.map((id) => id.charAt(at))).size).toBeGreaterThan(1);
  const sorted = ids.toSorted();
  expect(ids).not.toEqual(sorted);
});
