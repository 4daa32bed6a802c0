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

/** What an endpoint gets when its owner asks for a test: nobody subscribes to it. */
export const WEBHOOK_TEST = "webhook.test";
/** The `type` of a body. */
export type MessageType = WebhookEvent | typeof WEBHOOK_TEST;

/** Of one message to one receiver: to be sent (again), taken, given up. */
export const DELIVERY_STATES = ["pending", "delivered", "failed"] as const;
export type DeliveryState = (typeof DELIVERY_STATES)[number];
