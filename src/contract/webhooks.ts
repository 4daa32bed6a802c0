/** What happened, as webhooks name it (the `type` of the body). Sent for asynchronous rollouts, and for datasets as a whole. */
export const WEBHOOK_EVENTS = [
  "rollout.succeeded",
  "rollout.failed",
  "rollout.cancelled",
  "rollout.expired",
  "dataset.completed",
  "dataset.cancelled",
  "dataset.paused",
] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];
