/** Waiting for what a receiver answers to a test. */
import { setTimeout as delay } from "node:timers/promises";

import type { Api } from "../api/client.ts";
import { DeliveryWithLog } from "../api/replies.ts";

const LOOK_EVERY_MS = 500;

/** As it stands when it has ended, or when the time is over. */
export async function untilAnswered(
  api: Api,
  id: string,
  waitMs: number,
  signal: AbortSignal,
): Promise<DeliveryWithLog> {
  const end = performance.now() + waitMs;
  for (;;) {
    const delivery = await api.get(`/v1/webhooks/deliveries/${encodeURIComponent(id)}`, DeliveryWithLog, { signal });
    const restMs = end - performance.now();
    if (delivery.state !== "pending" || restMs <= 0) return delivery;
    await delay(Math.min(LOOK_EVERY_MS, restMs), undefined, { signal });
  }
}
