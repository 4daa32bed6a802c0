/**
 * A customer under fire: sends rollouts one after the other, retries as the published client does, goes away now and
 * then, and remembers what it was told, so that the books can be compared with what customers saw.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { Random } from "./random.ts";

export interface CustomerRequest {
  readonly route: "predict" | "batch" | "rollouts";
  readonly actions: number;
  readonly k: number;
  readonly seed: number;
  readonly idempotencyKey: string | null;
  /** Milliseconds after which the customer hangs up, or null to wait for the answer. */
  readonly hangUpAfterMs: number | null;
}

export interface CustomerReply {
  readonly request: CustomerRequest;
  /** Last HTTP status, 0 when every attempt met a transport error, −1 when the customer hung up. */
  readonly status: number;
  readonly requestId: string | null;
  readonly frames: number;
  readonly body: Buffer;
}

/** The published client's policy: three attempts on 429, 502, 503, 504 and transport errors; a few more here. */
const ATTEMPTS_MAX = 8;
const RETRYABLE = new Set([429, 502, 503, 504]);
const BACKOFF_MS_MAX = 4_000;

export function drawRequest(random: Random, index: number): CustomerRequest {
  const route = random.pick<CustomerRequest["route"]>(["predict", "predict", "batch", "rollouts", "rollouts"]);
  return {
    route,
    actions: 12 * random.integer(1, 4),
    k: route === "batch" ? random.integer(2, 4) : 1,
    seed: index,
    idempotencyKey: route === "rollouts" && random.next() < 0.7 ? `chaos-${index}` : null,
    hangUpAfterMs: random.next() < 0.12 ? random.integer(5, 600) : null,
  };
}

export async function send(
  baseUrl: string,
  apiKey: string,
  request: CustomerRequest,
  inputs: { readonly frame: Uint8Array; readonly actionsNpy: (actions: number) => Uint8Array },
): Promise<CustomerReply> {
  let reply: CustomerReply = { request, status: 0, requestId: null, frames: 0, body: Buffer.alloc(0) };
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    try {
      reply = await sendOnce(baseUrl, apiKey, request, inputs);
      if (!RETRYABLE.has(reply.status)) return reply;
    } catch (error) {
      if (error instanceof DOMException && error.name === "TimeoutError") return { ...reply, status: -1 };
      // Otherwise the gateway died under us: a transport error, which the client retries.
    }
    await delay(Math.min(BACKOFF_MS_MAX, 250 * 2 ** attempt));
  }
  return reply;
}

async function sendOnce(
  baseUrl: string,
  apiKey: string,
  request: CustomerRequest,
  inputs: { readonly frame: Uint8Array; readonly actionsNpy: (actions: number) => Uint8Array },
): Promise<CustomerReply> {
  const form = new FormData();
  const frame = new Blob([Buffer.from(inputs.frame)], { type: "image/png" });
  const actions = new Blob([Buffer.from(inputs.actionsNpy(request.actions))], { type: "application/octet-stream" });
  if (request.route === "rollouts") {
    form.set("start_frame", frame, "frame.png");
    form.set("actions", actions, "actions.npy");
    form.set("params", JSON.stringify({ seed: request.seed }));
  } else {
    form.set("frame", frame, "frame.png");
    for (let k = 0; k < request.k; k++) form.append("actions", actions, `actions_${String(k).padStart(3, "0")}.npy`);
    form.set("seed", String(request.seed));
  }
  const path = { predict: "/v1/predict", batch: "/v1/predict/batch", rollouts: "/v1/rollouts" }[request.route];
  const response = await fetch(baseUrl + path, {
    method: "POST",
    body: form,
    headers: {
      authorization: `Bearer ${apiKey}`,
      ...(request.idempotencyKey === null ? {} : { "idempotency-key": request.idempotencyKey }),
    },
    signal: AbortSignal.timeout(request.hangUpAfterMs ?? 120_000),
  });
  const body = Buffer.from(await response.arrayBuffer());
  return {
    request,
    status: response.status,
    requestId: response.headers.get("x-dreamengine-request-id"),
    frames: request.k * (request.actions + 1),
    body,
  };
}
