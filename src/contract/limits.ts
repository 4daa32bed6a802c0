/** Limits of the wire contract. Each is refused at the gateway with a message that names it. */
export const BODY_BYTES_MAX = 32 * 1024 * 1024;
export const ACTIONS_PER_ROLLOUT_MAX = 240;
export const CANDIDATES_MAX = 32;
export const NUM_STEPS_MIN = 1;
export const NUM_STEPS_MAX = 100;
export const GUIDANCE_MIN = 0;
export const GUIDANCE_MAX = 20;
export const PROMPT_BYTES_MAX = 512;
export const FRAME_PIXELS_MAX = 64_000_000;
export const IDEMPOTENCY_KEY_CHARS_MAX = 255;
export const TRANSACTIONS_PAGE_MAX = 200;
/** Usable keys that a customer may have and still mint another; operators are not bound by it. */
export const KEYS_PER_CUSTOMER_MAX = 20;
export const KEY_LABEL_CHARS_MAX = 100;
/** Of a key without a limit of its own. */
export const KEY_RATE_PER_S_DEFAULT = 50;
export const KEY_BURST_DEFAULT = 200;
export const TOPUP_CENTS_MIN = 500;
export const TOPUP_CENTS_MAX = 1_000_000;

/** A synchronous call is answered before this, because the published client gives up (and resubmits) at 300 s. */
export const SYNC_DEADLINE_MS = 285_000;
/** How long a paid, finished but undelivered video can be fetched by repeating its request, at no charge. */
export const REDELIVERY_WINDOW_MS = 15 * 60_000;
export const IDEMPOTENCY_KEPT_MS = 24 * 3_600_000;
export const VIDEO_URL_LIFETIME_MS = 3_600_000;
