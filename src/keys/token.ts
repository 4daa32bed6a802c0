/**
 * API keys as text: `dre_`, 36 random base32 characters (180 bits), 7 characters of checksum (35 bits of SHA-256
 * over the 36). The checksum tells a typo or a lost character from an unknown key without asking the database.
 * Only the SHA-256 of the whole text is ever stored; a key of 180 random bits needs no slow hash. Looking a key up by
 * its hash leaks no timing: what is compared is nothing an attacker can choose byte by byte.
 */
import { createHash } from "node:crypto";

import type { RandomBytes } from "#contract/ids.ts";

const ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";
const SCHEME = "dre_";
const RANDOM_CHARS = 36;
const CHECKSUM_CHARS = 7;
const TOKEN_CHARS = SCHEME.length + RANDOM_CHARS + CHECKSUM_CHARS;
/** Shown in listings to recognise a key by; short enough that the log's secret filter lets it pass. */
export const PREFIX_CHARS = SCHEME.length + 7;

export interface MintedToken {
  /** The secret itself: shown once, never stored. */
  readonly token: string;
  readonly hash: Buffer;
  readonly prefix: string;
}

export function mintToken(random: RandomBytes): MintedToken {
  // 256 is a multiple of 32, so the low five bits of a random byte are a fair draw.
  const body = Array.from(random(RANDOM_CHARS), (byte) => ALPHABET.charAt(byte & 31)).join("");
  const token = `${SCHEME}${body}${checksumOf(body)}`;
  return { token, hash: hashOf(token), prefix: prefixOf(token) };
}

/** The part of a key that is stored and shown. */
export const prefixOf = (token: string): string => token.slice(0, PREFIX_CHARS);

export type ReadToken = { readonly ok: true; readonly hash: Buffer } | { readonly ok: false; readonly problem: string };

/** Checks the form and the checksum. `problem` completes the sentence "the API key …" and repeats nothing of the key. */
export function readToken(text: string): ReadToken {
  if (!text.startsWith(SCHEME)) return { ok: false, problem: `must start with ${SCHEME}` };
  if (text.length !== TOKEN_CHARS) {
    const cutOff = text.length < TOKEN_CHARS ? ": was it cut off?" : "";
    return { ok: false, problem: `must have ${TOKEN_CHARS} characters, got ${text.length}${cutOff}` };
  }
  const body = text.slice(SCHEME.length, SCHEME.length + RANDOM_CHARS);
  if (!/^[a-z2-7]+$/.test(text.slice(SCHEME.length))) {
    return { ok: false, problem: `may only have the characters a-z and 2-7 after ${SCHEME}` };
  }
  if (checksumOf(body) !== text.slice(-CHECKSUM_CHARS)) {
    return { ok: false, problem: "is mistyped: its checksum does not match" };
  }
  return { ok: true, hash: hashOf(text) };
}

function checksumOf(body: string): string {
  // The first 40 bits, of which the upper 35 are seven characters of five bits.
  const bits = BigInt(`0x${createHash("sha256").update(body).digest("hex").slice(0, 10)}`);
  return Array.from({ length: CHECKSUM_CHARS }, (_, i) =>
    ALPHABET.charAt(Number((bits >> BigInt(35 - 5 * i)) & 31n)),
  ).join("");
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
