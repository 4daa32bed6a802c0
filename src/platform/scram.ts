/** What PostgreSQL keeps of a password, made here, so that the password itself is in no statement and no server's log. */
import { createHash, createHmac, pbkdf2Sync } from "node:crypto";

import type { RandomBytes } from "#contract/ids.ts";

/** PostgreSQL's own, both: scram_iterations and the salt's bytes. */
const ITERATIONS = 4096;
const SALT_BYTES = 16;

/** Printable ASCII, which SASLprep (RFC 4013) leaves as it is: server and client see the same bytes. */
export const isPlainPassword = (password: string): boolean => /^[\x20-\x7e]+$/.test(password);

/**
 * `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, for `ALTER ROLE … PASSWORD` (RFC 5802 section 3, with
 * SHA-256 by RFC 7677; the notation is that of pg_authid.rolpassword). Holds no quote. Throws RangeError on a password that isPlainPassword refuses.
 */
export function scramVerifier(password: string, random: RandomBytes): string {
  if (!isPlainPassword(password)) throw new RangeError("expected a password of printable ASCII characters");
  const salt = Buffer.from(random(SALT_BYTES));
  const salted = pbkdf2Sync(password, salt, ITERATIONS, 32, "sha256");
  const keyed = (name: string): Buffer => createHmac("sha256", salted).update(name).digest();
  const stored = createHash("sha256").update(keyed("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${ITERATIONS}:${salt.toString("base64")}$${stored}:${keyed("Server Key").toString("base64")}`;
}
