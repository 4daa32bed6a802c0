import { randomBytes } from "node:crypto";

import * as fc from "fast-check";
import { expect, test } from "vitest";

import { mintToken, readToken } from "#keys/token.ts";
import { withoutSecrets } from "#platform/log.ts";

const ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";

/** Any token, from any randomness. */
const tokens = fc.uint8Array({ minLength: 36, maxLength: 36 }).map((bytes) => mintToken(() => bytes));

test("a key is dre_ and 43 base32 characters", () => {
  fc.assert(
    fc.property(tokens, ({ token }) => {
      expect(token).toMatch(/^dre_[a-z2-7]{43}$/);
    }),
  );
});

test("reads back with the hash it was minted with, whatever the randomness", () => {
  fc.assert(
    fc.property(tokens, ({ token, hash }) => {
      expect(hash).toHaveLength(32);
      expect(readToken(token)).toEqual({ ok: true, hash });
    }),
  );
});

test("all 180 random bits are used: every random byte changes the key", () => {
  const bytes = randomBytes(36);
  const { token } = mintToken(() => bytes);
  for (let i = 0; i < 36; i++) {
    const changed = Buffer.from(bytes);
    changed.writeUInt8((changed.readUInt8(i) + 1) % 256, i);
    expect(mintToken(() => changed).token).not.toBe(token);
  }
});

test("notices any one mistyped character", () => {
  fc.assert(
    fc.property(tokens, fc.integer({ min: 4, max: 46 }), fc.integer({ min: 1, max: 31 }), ({ token }, at, by) => {
      const typed = ALPHABET.charAt((ALPHABET.indexOf(token.charAt(at)) + by) % 32);
      const read = readToken(token.slice(0, at) + typed + token.slice(at + 1));
      expect(read).toEqual({ ok: false, problem: expect.stringMatching(/checksum/) });
    }),
  );
});

test("notices two neighbours that changed places", () => {
  fc.assert(
    fc.property(tokens, fc.integer({ min: 4, max: 45 }), ({ token }, at) => {
      fc.pre(token.charAt(at) !== token.charAt(at + 1));
      const swapped = token.slice(0, at) + token.charAt(at + 1) + token.charAt(at) + token.slice(at + 2);
      expect(readToken(swapped).ok).toBe(false);
    }),
  );
});

test("tells what is wrong, and repeats nothing of the key", () => {
  const { token } = mintToken(randomBytes);
  const problems: [string, RegExp][] = [
    [token.slice(0, -1), /47 characters, got 46: was it cut off/],
    [`${token}a`, /47 characters, got 48$/],
    [token.slice(4), /start with dre_/],
    ["", /start with dre_/],
    [token.slice(0, 10) + token.slice(10).toUpperCase(), /characters a-z and 2-7/],
    [`${token.slice(0, -1)}1`, /characters a-z and 2-7/],
    [`${token.slice(0, -1)}\n`, /characters a-z and 2-7/],
  ];
  for (const [text, problem] of problems) {
    const read = readToken(text);
    expect(read).toEqual({ ok: false, problem: expect.stringMatching(problem) });
    expect(JSON.stringify(read)).not.toContain(token.slice(10, 30));
  }
});

test("the log's filter takes a key out, and leaves the prefix that listings show", () => {
  const { token, prefix } = mintToken(randomBytes);
  expect(withoutSecrets(`used ${token} today`)).toBe("used [secret] today");
  expect(withoutSecrets(`revoked ${prefix}`)).toBe(`revoked ${prefix}`);
});
