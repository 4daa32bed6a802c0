/**
 * The errors a caller can meet. `code` is stable and machine-readable; the status follows from it.
 * The published client reads `detail` only, so each message stands on its own.
 */
const STATUS_OF = {
  invalid_request: 400,
  webhook_rejected: 400,
  missing_key: 401,
  malformed_key: 401,
  unknown_key: 401,
  revoked_key: 401,
  expired_key: 401,
  insufficient_credits: 402,
  forbidden: 403,
  signup_disabled: 403,
  video_url_expired: 403,
  video_url_invalid: 403,
  not_found: 404,
  model_not_found: 404,
  rollout_not_found: 404,
  dataset_not_found: 404,
  upload_not_found: 404,
  webhook_not_found: 404,
  method_not_allowed: 405,
  last_key: 409,
  too_many_keys: 409,
  too_many_webhooks: 409,
  too_many_datasets: 409,
  too_many_uploads: 409,
  rollout_finished: 409,
  wrong_state: 409,
  still_receiving: 409,
  video_expired: 410,
  payload_too_large: 413,
  unsupported_media_type: 415,
  range_not_satisfiable: 416,
  invalid_input: 422,
  unknown_model: 422,
  not_supported: 422,
  idempotency_mismatch: 422,
  url_not_allowed: 422,
  dataset_rejected: 422,
  // Of a row of a dataset, never of a request.
  fetch_failed: 422,
  rate_limited: 429,
  too_many_waiting: 429,
  client_closed_request: 499,
  internal: 500,
  engine_failed: 500,
  rollout_lost: 500,
  rollout_cancelled: 500,
  ledger_unavailable: 503,
  no_capacity: 503,
  shutting_down: 503,
  topup_not_configured: 503,
  payments_unavailable: 503,
  deadline_exceeded: 504,
} as const;

export type ErrorCode = keyof typeof STATUS_OF;

export class ApiError extends Error {
  readonly code: ErrorCode;
  readonly status: number;
  /** Replaces the message as the wire's `detail`, where the client expects an object (402). */
  readonly detail: Readonly<Record<string, unknown>> | undefined;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    code: ErrorCode,
    message: string,
    options: { detail?: Record<string, unknown>; headers?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = "ApiError";
    this.code = code;
    this.status = STATUS_OF[code];
    this.detail = options.detail;
    this.headers = options.headers ?? {};
  }
}
