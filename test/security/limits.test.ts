/** Requests that are too large, malformed or odd are refused cheaply, and the gateway goes on. */
import { connect } from "node:net";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { prefixOf } from "#keys/token.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { booksOf } from "#test/gateway/support/books.ts";
import { FORM_TYPE } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

let t: TestGateway;
let server: Service & { readonly url: string };
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway({
    rateLimiter: { take: async () => ({ allowed: true, remaining: 1, retry_after_ms: 0 }) },
  });
  server = await t.listen();
  key = await t.newKey();
});
afterAll(() => t.stop());

/** Bytes as they are, and the status line that comes back. */
function raw(text: string): Promise<string> {
  const { port } = new URL(server.url);
  return new Promise((resolve) => {
    const socket = connect(Number(port), "127.0.0.1");
    let answer = "";
    socket.on("data", (chunk: Buffer) => {
      answer += chunk.toString("latin1");
      if (answer.includes("\r\n\r\n")) socket.destroy();
    });
    socket.on("error", () => undefined); // the server may have hung up first
    socket.on("close", () => resolve(answer.split("\r\n")[0] ?? ""));
    socket.write(text, "latin1");
  });
}

const request = (lines: readonly string[], path = "/v1/billing/balance"): Promise<string> =>
  raw([`GET ${path} HTTP/1.1`, "Host: x", "Connection: close", ...lines, "", ""].join("\r\n"));
const isAlive = async (): Promise<boolean> => (await fetch(`${server.url}/healthz`)).ok;

describe("an Authorization header", () => {
  test.each([
    ["that is empty", "Authorization: "],
    ["without a key", "Authorization: Bearer"],
    ["of another scheme", "Authorization: Basic dXNlcjpwYXNz"],
    ["with two keys", "Authorization: Bearer dre_a dre_b"],
    ["with a key that is cut off", `Authorization: Bearer dre_${"a".repeat(20)}`],
    ["with a key in capitals", `Authorization: Bearer DRE_${"A".repeat(43)}`],
    ["with a megabyte of a key's form", `Authorization: Bearer dre_${"a".repeat(8_000)}`],
    ["with bytes that are no text", "Authorization: Bearer dre_\x80\xff\xfe"],
    ["with tabs", "Authorization:\tBearer\tdre_x"],
    ["with a key inside quotation marks", 'Authorization: "Bearer dre_x"'],
  ])("%s is refused with 401 or 400", async (_name, line) => {
    expect(await request([line])).toMatch(/^HTTP\/1\.1 (401|400) /);
  });

  test("sent twice is no way around the first", async () => {
    expect(await request([`Authorization: Bearer dre_x`, `Authorization: Bearer ${key.api_key}`])).toMatch(
      /^HTTP\/1\.1 (401|400) /,
    );
  });

  test("whose key has spaces around it is the key", async () => {
    expect(await request([`authorization:   bearer   ${key.api_key}   `])).toMatch(/^HTTP\/1\.1 200 /);
  });

  test("in the query or a cookie is none", async () => {
    expect(await request([], `/v1/billing/balance?api_key=${key.api_key}`)).toMatch(/^HTTP\/1\.1 401 /);
    expect(await request([`Cookie: authorization=Bearer ${key.api_key}`])).toMatch(/^HTTP\/1\.1 401 /);
  });

  test("with the right beginning of a key tells nothing of the rest", async () => {
    const short = await fetch(`${server.url}/v1/billing/balance`, {
      headers: { authorization: `Bearer ${prefixOf(key.api_key)}` },
    });
    expect(short.status).toBe(401);
    expect(await short.text()).not.toContain(key.key_id);
  });
});

describe("headers", () => {
  test("of more than 16 kB are refused with 431", async () => {
    expect(await request([`X-Long: ${"a".repeat(20_000)}`])).toMatch(/^HTTP\/1\.1 431 /);
    expect(await request(Array.from({ length: 1_500 }, (_, n) => `X-${n}: aaaaaaaaaaaaa`))).toMatch(/^HTTP\/1\.1 431 /);
  });

  test.each([
    ["two lengths", "POST /v1/billing/topup HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
    [
      "a length and chunks",
      "POST /v1/billing/topup HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ["a negative length", "POST /v1/billing/topup HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"],
    ["a folded line", "GET /v1/status HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n"],
    ["no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"],
  ])("with %s are refused, so that no two servers read them differently", async (_name, text) => {
    expect(await raw(text)).toMatch(/^HTTP\/1\.1 4\d\d /);
    expect(await isAlive()).toBe(true);
  });
});

describe("a body", () => {
  test.each([
    ["/v1/rollouts", BODY_BYTES_MAX + 1, FORM_TYPE, 413],
    ["/v1/billing/topup", 2_000_000, "application/json", 413],
    ["/v1/keys", 100_000, "application/json", 413],
    ["/v1/signup", 100_000, "application/json", 403],
  ])("of %s that announces %d bytes is refused before it is sent", async (path, bytes, type, status) => {
    const before = await booksOf(t, key.customer_id);
    const line = await raw(
      [
        `POST ${path} HTTP/1.1`,
        "Host: x",
        `Authorization: Bearer ${key.api_key}`,
        `Content-Type: ${type}`,
        `Content-Length: ${bytes}`,
        "",
        "{",
      ].join("\r\n"),
    );
    expect(line).toContain(` ${status} `);
    expect(await booksOf(t, key.customer_id)).toEqual(before);
  });

  test.each([
    ["no JSON", "{"],
    ["an array", "[]"],
    ["a number", "1"],
    ["nothing", ""],
    ["nested ten thousand times", "[".repeat(10_000) + "]".repeat(10_000)],
    ["a poisoned prototype", '{"__proto__": {"amount_cents": 500}, "constructor": {"prototype": {"x": 1}}}'],
  ])("of JSON routes that is %s is refused with 4xx", async (_name, payload) => {
    for (const url of ["/v1/billing/topup"]) {
      const answer = await t.app.inject({
        method: "POST",
        url,
        headers: { authorization: `Bearer ${key.api_key}`, "content-type": "application/json" },
        payload,
      });
      // Without Stripe a well-formed body would get 503.
      expect([400, 413, 415, 422, 503]).toContain(answer.statusCode);
    }
    expect(Object.keys(Object.prototype)).toEqual([]);
    expect(await isAlive()).toBe(true);
  });
});
