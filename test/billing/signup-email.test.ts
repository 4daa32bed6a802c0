import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { signUp } from "#keys/self-service.ts";

import { type PayingGateway, startPayingGateway } from "./support.ts";

let g: PayingGateway;
beforeAll(async () => {
  g = await startPayingGateway();
});
afterAll(() => g.stop());

test("Stripe gets the address of a sign-up, so that receipts arrive", async () => {
  const { api_key, customer_id } = await signUp(g.t.db, { email: "Ada@example.com" }, randomBytes);
  await g.session(api_key);
  const customers = [...g.stripe.books.customers.values()];
  expect(customers).toMatchObject([{ email: "ada@example.com", metadata: { customer_id } }]);
});
