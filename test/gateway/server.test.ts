import { expect, test } from "vitest";

import { halfOfStripe } from "#gateway/server.ts";

test("one of Stripe's two settings without the other is worth a warning that names both", () => {
  const [key, secret] = ["sk_test_of_the_tests", ["whsec_of_the_tests"]];
  expect(halfOfStripe({ STRIPE_SECRET_KEY: key, STRIPE_WEBHOOK_SECRET: undefined })).toMatch(
    /^STRIPE_SECRET_KEY is set and STRIPE_WEBHOOK_SECRET is not: nobody can top up/,
  );
  expect(halfOfStripe({ STRIPE_SECRET_KEY: undefined, STRIPE_WEBHOOK_SECRET: secret })).toMatch(
    /^STRIPE_WEBHOOK_SECRET is set and STRIPE_SECRET_KEY is not: nobody/,
  );
  expect(halfOfStripe({ STRIPE_SECRET_KEY: key, STRIPE_WEBHOOK_SECRET: secret })).toBeNull();
  expect(halfOfStripe({ STRIPE_SECRET_KEY: undefined, STRIPE_WEBHOOK_SECRET: undefined })).toBeNull();
});
