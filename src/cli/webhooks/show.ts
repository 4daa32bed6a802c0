/** Webhooks and deliveries in words. */
import { WEBHOOK_EVENTS } from "#contract/webhooks.ts";

import type { DeliveryReply, DeliveryWithLog, WebhookReply } from "../api/replies.ts";
import { tableText, timeText } from "../output.ts";

export const WEBHOOK_HEADING = ["WEBHOOK", "CREATED (UTC)", "STATE", "EVENTS", "URL"];

export const webhookCells = (webhook: WebhookReply): string[] => [
  webhook.id,
  timeText(webhook.created),
  stateText(webhook),
  eventsText(webhook),
  `${webhook.url}${webhook.description === null ? "" : ` (${webhook.description})`}`,
];

export function webhookText(webhook: WebhookReply): string {
  return [
    `Webhook  ${webhook.id}${webhook.description === null ? "" : ` · ${webhook.description}`}`,
    `URL      ${webhook.url}`,
    `Events   ${eventsText(webhook)}`,
    `State    ${stateText(webhook)}`,
  ].join("\n");
}

const stateText = ({ enabled, disabled_reason }: WebhookReply): string =>
  enabled ? "enabled" : `disabled: ${disabled_reason}`;

const eventsText = ({ events }: WebhookReply): string =>
  WEBHOOK_EVENTS.every((event) => events.includes(event)) ? "all" : events.join(", ");

export const DELIVERY_HEADING = [
  "DELIVERY",
  "CREATED (UTC)",
  "EVENT",
  "STATE",
  "ATTEMPTS",
  "LAST",
  "NEXT (UTC)",
  "URL",
];

export const deliveryCells = (delivery: DeliveryReply): string[] => [
  delivery.id,
  timeText(delivery.created),
  delivery.event,
  delivery.state,
  String(delivery.attempts),
  lastText(delivery),
  nextText(delivery),
  delivery.url,
];

const lastText = ({ last_status, last_error }: DeliveryReply): string =>
  last_status === null ? (last_error === null ? "" : "no answer") : String(last_status);

function nextText({ sending, next_attempt_at }: DeliveryReply): string {
  if (sending) return "being sent";
  return next_attempt_at === null ? "" : timeText(next_attempt_at);
}

export function deliveryText(delivery: DeliveryWithLog): string {
  const next = nextText(delivery);
  const { rollout, dataset, log } = delivery;
  return [
    `Delivery  ${delivery.id}`,
    `Event     ${delivery.event}${(rollout ?? dataset) ? ` of ${rollout ?? dataset}` : ""}`,
    `To        ${delivery.url} (${delivery.endpoint ?? "a webhook_url"})`,
    `Created   ${timeText(delivery.created)} UTC`,
    `State     ${delivery.state}${delivery.reason === null ? "" : `: ${delivery.reason}`}`,
    ...(next === "" ? [] : [`Next      ${next}${delivery.sending ? "" : " UTC"}`]),
    "",
    tableText([
      ["ATTEMPT", "AT (UTC)", "MS", "STATUS", "WHAT CAME BACK"],
      ...log.map(({ n, at, duration_ms, status, error, excerpt }) => [
        String(n),
        timeText(at),
        String(duration_ms),
        status === null ? "no answer" : String(status),
        error ?? excerpt ?? "",
      ]),
    ]),
  ].join("\n");
}

/** What one wants to know after a test. */
export function answerText({ url, state, reason, log }: DeliveryWithLog): string {
  const last = log.at(-1);
  if (last === undefined) return `${state}: ${reason ?? "nothing was sent"}`;
  const { status, error, duration_ms, excerpt } = last;
  if (status === null) return `${state}: no answer from ${url}: ${error}`;
  return `${state}: ${url} answered ${status} in ${duration_ms} ms${excerpt ? `: ${excerpt}` : ""}`;
}
