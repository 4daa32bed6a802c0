/** Fifty connections spend the same last mils at once: exactly as many succeed as can be paid for. */
import { Agent, request as httpRequest } from "node:http";

import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { Service } from "#platform/lifecycle.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { formBody, FORM_TYPE, rolloutParts } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

const CONNECTIONS = 50;
const CHARGE = 245;
const CHEAPEST = 65;

let t: TestGateway;
let servers: (Service & { readonly url: string })[];
beforeAll(async () => {
  t = await startTestGateway();
  servers = [await t.listen(), await t.listen()];
});
afterAll(() => t.stop());

function post(url: string, apiKey: string, body: Buffer, agent: Agent): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${apiKey}`, "content-type": FORM_TYPE, "content-length": body.length };
    const request = httpRequest(`${url}/v1/rollouts`, { method: "POST", agent, headers }, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += chunk.toString()));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body: text }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

test.each([
  ["none", CHARGE - 1],
  ["one", CHARGE],
  ["seven", 7 * CHARGE + 244],
  ["all", CONNECTIONS * CHARGE],
] as const)("of fifty at once over two gateways %s can be paid", async (_name, credit) => {
  const affordable = Math.floor(credit / CHARGE);
  const key = await t.newKey(mils(credit));
  const agent = new Agent({ maxSockets: CONNECTIONS, keepAlive: false });
  const answers = await Promise.all(
    Array.from({ length: CONNECTIONS }, async (_, seed) => {
      const url = servers[seed % servers.length]?.url ?? "";
      return await post(url, key.api_key, formBody(await rolloutParts(JSON.stringify({ seed }))), agent);
    }),
  );
  agent.destroy();

  expect(answers.filter(({ status }) => status === 200).length).toBe(affordable);
  const refused = answers.filter(({ status }) => status !== 200);
  for (const { status, body } of refused) {
    expect(status).toBe(402);
    const { detail } = JSON.parse(body) as { detail: { balance_mils: number; requested_mils: number } };
    // The cheapest rollout there is, where the balance does not even pay for that: told before the form is read.
    expect([CHARGE, CHEAPEST]).toContain(detail.requested_mils);
    expect(detail.balance_mils).toBeLessThan(detail.requested_mils);
  }
  expect(Number(await balanceOf(t.db, key.customer_id))).toBe(credit - affordable * CHARGE);
  const rollouts = await t.db.query(`SELECT FROM rollouts WHERE customer_id = $1`, [key.customer_id]);
  expect(rollouts.length).toBe(affordable);
  expect(await verifyLedger(t.db)).toEqual([]);
});

test("two keys of one customer share the last mils, and do not double them", async () => {
  const first = await t.newKey(mils(3 * CHARGE));
  const minted = await t.app.inject({
    method: "POST",
    url: "/v1/keys",
    headers: { authorization: `Bearer ${first.api_key}`, "content-type": "application/json" },
    payload: "{}",
  });
  const keys = [first.api_key, minted.json<{ api_key: string }>().api_key];
  const agent = new Agent({ maxSockets: CONNECTIONS });
  const answers = await Promise.all(
    Array.from({ length: 20 }, async (_, seed) =>
      post(
        servers[seed % 2]?.url ?? "",
        keys[seed % 2] ?? "",
        formBody(await rolloutParts(JSON.stringify({ seed }))),
        agent,
      ),
    ),
  );
  agent.destroy();
  expect(answers.filter(({ status }) => status === 200).length).toBe(3);
  expect(await balanceOf(t.db, first.customer_id)).toBe(0n);
});
