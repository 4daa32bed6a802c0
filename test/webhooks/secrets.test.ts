/** Signatures, checked by the library that receivers use. */
import { randomBytes } from "node:crypto";

import { Webhook } from "standardwebhooks";
import { expect, test } from "vitest";

import type { CustomerId, EndpointId } from "#contract/ids.ts";
import { withoutSecrets } from "#platform/log.ts";
import {
  type Generation,
  previousSignsUntil,
  ROTATION_OVERLAP_MS,
  secretText,
  signatureHeaders,
  type Signer,
} from "#webhooks/secrets.ts";

const root = randomBytes(32);
const endpoint: Signer = { kind: "endpoint", id: "endpoint_1" as EndpointId };
const now = Date.now();
const body = Buffer.from('{"type":"rollout.succeeded","data":{"prompt":"ü"}}');
const first: Generation = { generation: 1, rotated_at: null };
const sign = (signer: Signer, generation: Generation, nowMs = now, sent = body) =>
  signatureHeaders(root, signer, generation, { id: "msg_1", nowMs, body: sent });

function verifies(secret: string, headers: Record<string, string>, received = body): boolean {
  try {
    new Webhook(secret).verify(received.toString(), headers);
    return true;
  } catch {
    return false;
  }
}

test("the receiver's library accepts them, and nothing that was changed", () => {
  const secret = secretText(root, endpoint, first);
  expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
  const headers = sign(endpoint, first);
  expect(verifies(secret, headers)).toBe(true);
  expect(verifies(secret, headers, Buffer.from('{"type":"rollout.failed"}'))).toBe(false);
  for (const [name, value] of [
    ["webhook-id", "msg_2"],
    ["webhook-timestamp", String(Math.floor(now / 1000) + 1)],
    ["webhook-signature", "v1,AAAA"],
  ] as const) {
    expect(verifies(secret, { ...headers, [name]: value })).toBe(false);
  }
  // One that somebody kept and sends again.
  expect(verifies(secret, sign(endpoint, first, now - 3_600_000))).toBe(false);
});

test("every receiver and generation has a secret of its own, and all of them follow from the root", () => {
  const signers: Signer[] = [
    endpoint,
    { kind: "endpoint", id: "endpoint_2" as EndpointId },
    { kind: "customer", id: "endpoint_1" as CustomerId },
    { kind: "customer", id: "cus_1" as CustomerId },
  ];
  const secrets = signers.flatMap((signer) => [1, 2, 12].map((generation) => secretText(root, signer, { generation })));
  expect(new Set(secrets).size).toBe(12);
  expect(secretText(root, endpoint, first)).toBe(secretText(root, endpoint, first));
  expect(secretText(randomBytes(32), endpoint, first)).not.toBe(secretText(root, endpoint, first));
});

test("after a rotation the old secret and the new one both verify for a day, then the new one alone", () => {
  const rotated: Generation = { generation: 2, rotated_at: new Date(now) };
  const [old, fresh] = [secretText(root, endpoint, first), secretText(root, endpoint, rotated)];
  const headers = sign(endpoint, rotated);
  expect(headers["webhook-signature"]).toMatch(/^v1,\S+ v1,\S+$/);
  expect([verifies(old, headers), verifies(fresh, headers)]).toEqual([true, true]);
  expect(previousSignsUntil(rotated, now)?.getTime()).toBe(now + ROTATION_OVERLAP_MS);

  const later: Generation = { generation: 2, rotated_at: new Date(now - ROTATION_OVERLAP_MS) };
  const after = sign(endpoint, later);
  expect([verifies(old, after), verifies(fresh, after)]).toEqual([false, true]);
  expect(previousSignsUntil(later, now)).toBeNull();
  expect(previousSignsUntil(first, now)).toBeNull();
});

test("a second rotation ends the first secret at once", () => {
  const twice: Generation = { generation: 3, rotated_at: new Date(now) };
  const headers = sign(endpoint, twice);
  const valid = [1, 2, 3].map((generation) => verifies(secretText(root, endpoint, { generation }), headers));
  expect(valid).toEqual([false, true, true]);
});

test("a log line with a secret in it loses all of it", () => {
  for (let i = 0; i < 100; i++) {
    const secret = secretText(randomBytes(32), endpoint, first);
    expect(withoutSecrets(`{"secret":"${secret}"}`)).toBe('{"secret":"[secret]"}');
  }
});
