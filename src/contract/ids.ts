/** Branded identifiers and their one spelling. Randomness comes in as a parameter so that tests can replay it. */
declare const idBrand: unique symbol;
type Id<Name extends string> = string & { readonly [idBrand]: Name };

export type RolloutId = Id<"rollout">;
export type CustomerId = Id<"customer">;
export type KeyId = Id<"key">;
export type RequestId = Id<"request">;
export type TopupId = Id<"topup">;
export type DatasetId = Id<"dataset">;
export type UploadId = Id<"upload">;
export type EndpointId = Id<"endpoint">;
export type DeliveryId = Id<"delivery">;

/** `node:crypto`'s randomBytes, or a seeded stand-in. */
export type RandomBytes = (size: number) => Uint8Array;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

// Each cast below is the place where that id is minted.
export const newRolloutId = (random: RandomBytes): RolloutId => `rollout_${hex(random(16))}` as RolloutId;
export const newCustomerId = (random: RandomBytes): CustomerId => `cus_${hex(random(8))}` as CustomerId;
export const newKeyId = (random: RandomBytes): KeyId => `key_${hex(random(8))}` as KeyId;
export const newRequestId = (random: RandomBytes): RequestId => `req_${hex(random(12))}` as RequestId;
export const newTopupId = (random: RandomBytes): TopupId => `topup_${hex(random(16))}` as TopupId;
export const newDatasetId = (random: RandomBytes): DatasetId => `dataset_${hex(random(16))}` as DatasetId;
export const newUploadId = (random: RandomBytes): UploadId => `upload_${hex(random(16))}` as UploadId;
export const newEndpointId = (random: RandomBytes): EndpointId => `endpoint_${hex(random(16))}` as EndpointId;

/** A parser that narrows text from outside, and gives null for what cannot be an id of that kind. */
const parserOf =
  <T extends string>(prefix: string): ((text: string) => T | null) =>
  (text) =>
    text.startsWith(prefix) && /^[0-9a-f]{32}$/.test(text.slice(prefix.length)) ? (text as T) : null;

export const parseRolloutId = parserOf<RolloutId>("rollout_");
export const parseTopupId = parserOf<TopupId>("topup_");
export const parseDatasetId = parserOf<DatasetId>("dataset_");
export const parseUploadId = parserOf<UploadId>("upload_");
export const parseEndpointId = parserOf<EndpointId>("endpoint_");
/** Minted by the database (webhook_deliveries). */
export const parseDeliveryId = parserOf<DeliveryId>("msg_");

/** The customer and key that requests without a header belong to when the server runs with AUTH=off. */
export const LOCAL_CUSTOMER = "cus_local" as CustomerId;
export const LOCAL_KEY = "key_local" as KeyId;

/** BullMQ job id of one dispatch of one rollout. BullMQ refuses ':' and all-digit ids; this has neither. */
export type JobId = `${string}-${number}`;
export const jobIdOf = (rolloutId: RolloutId, attempt: number): JobId => `${rolloutId}-${attempt}`;
