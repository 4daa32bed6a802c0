/**
 * Webhooks as Stripe sends them: signed, again after anything but a 2xx, and in no order that one could rely on. Events wait
 * in `outbox` until a test delivers them, or go out at once after `deliverTo`.
 */
import { createHmac } from "node:crypto";

import type { Clock } from "#platform/clock.ts";

import type { StripeEvent } from "./objects.ts";

export interface Signed {
  readonly body: string;
  /** The header `Stripe-Signature`. */
  readonly signature: string;
}

/** Sends a webhook; resolves to the status of the answer. */
export type Endpoint = (signed: Signed) => Promise<number>;

export interface SignOptions {
  /** Several during a rotation: Stripe then signs with each. */
  readonly secrets?: readonly string[];
  /** Epoch seconds. */
  readonly timestamp?: number;
}

export interface Deliveries {
  /** What was not answered with a 2xx yet, oldest first. */
  readonly outbox: readonly StripeEvent[];
  sign(event: unknown, options?: SignOptions): Signed;
  /** From now on events go out at once, each waiting for the one before it. */
  deliverTo(endpoint: Endpoint | null): void;
  /** Sends these once each, in this order; gives the statuses. 2xx takes them out of the outbox. */
  deliver(events: readonly StripeEvent[], endpoint: Endpoint): Promise<number[]>;
  /** Everything in the outbox, oldest first. */
  flush(endpoint: Endpoint): Promise<number[]>;
  /** Events that nobody will ever hear of. */
  drop(which?: (event: StripeEvent) => boolean): void;
  /** Until what `deliverTo` began has been answered. */
  settled(): Promise<void>;
}

export function createDeliveries({ secret, clock }: { secret: string; clock: Clock }): Deliveries & {
  push(event: StripeEvent): void;
} {
  let outbox: StripeEvent[] = [];
  let endpoint: Endpoint | null = null;
  let last: Promise<unknown> = Promise.resolve();

  const sign: Deliveries["sign"] = (event, { secrets = [secret], timestamp = Math.floor(clock.now() / 1000) } = {}) => {
    const body = typeof event === "string" ? event : JSON.stringify(event, null, 2);
    const v1 = secrets.map((one) => `v1=${createHmac("sha256", one).update(`${timestamp}.${body}`).digest("hex")}`);
    return { body, signature: [`t=${timestamp}`, ...v1, "v0=00"].join(",") };
  };

  async function deliver(events: readonly StripeEvent[], to: Endpoint): Promise<number[]> {
    const statuses: number[] = [];
    for (const event of events) {
      const status = await to(sign(event));
      statuses.push(status);
      if (status >= 200 && status < 300) outbox = outbox.filter(({ id }) => id !== event.id);
    }
    return statuses;
  }

  return {
    get outbox() {
      return outbox;
    },
    push(event) {
      outbox.push(event);
      const to = endpoint;
      // A failed delivery stays in the outbox, as with Stripe.
      if (to) last = last.then(() => deliver([event], to)).catch(() => undefined);
    },
    sign,
    deliverTo(to) {
      endpoint = to;
    },
    deliver,
    flush: (to) => deliver([...outbox], to),
    drop(which = () => true) {
      outbox = outbox.filter((event) => !which(event));
    },
    async settled() {
      await last;
    },
  };
}

/** The webhook of a server that listens. */
export const httpEndpoint =
  (baseUrl: string): Endpoint =>
  async ({ body, signature }) => {
    const answer = await fetch(`${baseUrl}/v1/billing/webhook`, {
      method: "POST",
      headers: { "content-type": "application/json; charset=utf-8", "stripe-signature": signature },
      body,
    });
    await answer.arrayBuffer();
    return answer.status;
  };
