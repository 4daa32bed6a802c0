/** Limits of the wire contract. Each is refused at the gateway with a message that names it. */
export const BODY_BYTES_MAX = 32 * 1024 * 1024;
export const ACTIONS_PER_ROLLOUT_MAX = 240;
export const CANDIDATES_MAX = 32;
export const NUM_STEPS_MIN = 1;
export const NUM_STEPS_MAX = 100;
export const GUIDANCE_MIN = 0;
export const GUIDANCE_MAX = 20;
export const PROMPT_BYTES_MAX = 512;
/** LPIPS takes no smaller frames (models/lpips/lpips-alex.json). */
export const SCORED_SIDE_MIN = 64;
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

/** How long an asynchronous rollout may wait for its start, unless it says otherwise (`expires_in_s`). */
export const ASYNC_EXPIRES_S_DEFAULT = 24 * 3600;
export const ASYNC_EXPIRES_S_MAX = 7 * 24 * 3600;
/** On top of the latest moment at which it may begin; the longest rollout takes a fraction of it. */
export const ASYNC_RUN_MAX_MS = 15 * 60_000;
/** `?wait=` of what can be waited for; below the idle time of the usual proxies. */
export const LONG_POLL_S_MAX = 50;
/** Places in the backlog that are counted; one further back is told this. Every submission counts them: within milliseconds. */
export const QUEUE_POSITION_MAX = 1_000;
export const LIST_PAGE_DEFAULT = 20;
export const LIST_PAGE_MAX = 200;

export const WEBHOOK_URL_CHARS_MAX = 2000;
export const WEBHOOK_ENDPOINTS_MAX = 20;

export const DATASET_ROWS_MAX = 250_000;
/** A row with both its inputs in base64 fits; a larger one uploads them. */
export const DATASET_LINE_BYTES_MAX = 8 * 1024 * 1024;
export const DATASET_BODY_BYTES_MAX = 4 * 1024 * 1024 * 1024;
export const DATASET_ROWS_PAGE_DEFAULT = 100;
export const DATASET_ROWS_PAGE_MAX = 1_000;
/** How long a row's rollout may wait for its start. */
export const DATASET_ROW_EXPIRES_MS = 24 * 3_600_000;
/** JSON text of the metadata of a dataset, or of one of its rows. */
export const DATASET_METADATA_BYTES_MAX = 8 * 1024;
/** Bad rows that the answer to a create lists. */
export const DATASET_PROBLEMS_LISTED = 100;
