/** Branded identifiers and their one spelling. Randomness comes in as a parameter so that tests can replay it. */
declare const idBrand: unique symbol;
type Id<Name extends string> = string & { readonly [idBrand]: Name };

export type RolloutId = Id<"rollout">;
export type CustomerId = Id<"customer">;
export type KeyId = Id<"key">;
export type RequestId = Id<"request">;
export type TopupId = Id<"topup">;

/** `node:crypto`'s randomBytes, or a seeded stand-in. */
export type RandomBytes = (size: number) => Uint8Array;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

// Each cast below is the place where that id is minted.
export const newRolloutId = (random: RandomBytes): RolloutId => `rollout_${hex(random(16))}` as RolloutId;
export const newCustomerId = (random: RandomBytes): CustomerId => `cus_${hex(random(8))}` as CustomerId;
export const newKeyId = (random: RandomBytes): KeyId => `key_${hex(random(8))}` as KeyId;
export const newRequestId = (random: RandomBytes): RequestId => `req_${hex(random(12))}` as RequestId;
export const newTopupId = (random: RandomBytes): TopupId => `topup_${hex(random(16))}` as TopupId;

const ROLLOUT_ID = /^rollout_[0-9a-f]{32}$/;

/** Narrows text from outside; null when it cannot be a rollout id. */
export function parseRolloutId(text: string): RolloutId | null {
  return ROLLOUT_ID.test(text) ? (text as RolloutId) : null;
}

const TOPUP_ID = /^topup_[0-9a-f]{32}$/;

/** Narrows text from outside; null when it cannot be a top-up's id. */
export function parseTopupId(text: string): TopupId | null {
  return TOPUP_ID.test(text) ? (text as TopupId) : null;
}

/** The customer and key that requests without a header belong to when the server runs with AUTH=off. */
export const LOCAL_CUSTOMER = "cus_local" as CustomerId;
export const LOCAL_KEY = "key_local" as KeyId;

/** BullMQ job id of one dispatch of one rollout. BullMQ refuses ':' and all-digit ids; this has neither. */
export type JobId = `${string}-${number}`;
export const jobIdOf = (rolloutId: RolloutId, attempt: number): JobId => `${rolloutId}-${attempt}`;
