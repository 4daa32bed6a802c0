import { createHash, timingSafeEqual } from "node:crypto";

const hash = (text: string): Buffer => createHash("sha256").update(text).digest();

/** Hashes, so that both sides have one length and the comparison tells nothing by its time. */
export const isSameSecret = (given: string, secret: string): boolean => timingSafeEqual(hash(given), hash(secret));
