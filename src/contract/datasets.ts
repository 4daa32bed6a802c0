/** A dataset's stored states and those of its rows. The steps between them are in src/datasets/states.ts. */
export const DATASET_STATES = [
  /** Its manifest or archive is coming in. */
  "receiving",
  /** Checked, and waits for a start. */
  "ready",
  "running",
  "paused",
  /** Cancelled; what ran is being stopped and refunded. */
  "cancelling",
  "cancelled",
  /** Every valid row has ended; failed ones can be retried. */
  "completed",
  /** Nothing of it ran: it was refused as a whole, or its upload broke off. */
  "rejected",
] as const;
export type DatasetState = (typeof DATASET_STATES)[number];

export const PAUSE_REASONS = [
  "requested",
  /** Goes on by itself when the balance can pay for the next row. */
  "insufficient_credits",
  "budget_reached",
  /** Its key was revoked or has expired: resume it with another one. */
  "key_unusable",
  "model_unavailable",
] as const;
export type PauseReason = (typeof PAUSE_REASONS)[number];

export const ROW_STATES = [
  /** Refused when it came in; never charged, never retried. */
  "invalid",
  "pending",
  "running",
  "succeeded",
  "failed",
  "cancelled",
  "expired",
] as const;
export type RowState = (typeof ROW_STATES)[number];
