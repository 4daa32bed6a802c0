/**
 * A stand-in for Stripe's API with a memory: the real `stripe` package talks to it by STRIPE_API_BASE. It keeps state
 * (books.ts), answers and refuses in Stripe's shapes, replays idempotency keys as Stripe does, signs webhooks
 * (deliveries.ts), and misbehaves when told to: late, not at all, cut off, or with a 500 after it has acted. Whoever opens
 * a session's URL has paid.
 */
import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

import type { Clock } from "#platform/clock.ts";
import { systemClock } from "#platform/clock.ts";

import { createStripeBooks, type StripeBooks } from "./books.ts";
import { createDeliveries, type Deliveries } from "./deliveries.ts";
import { answerCall, type Call, StripeRefusal } from "./endpoints.ts";
import { parseForm } from "./form.ts";

/** `when`: before it acts (nothing happened) or after (it did, and the caller does not know). */
export interface Fault {
  readonly path: RegExp;
  readonly method?: "GET" | "POST";
  readonly when: "before" | "after";
  /** status: an answer of that status; cut: the connection ends; silence: no answer until the stand-in stops; delay: late. */
  readonly how: { readonly status: number } | "cut" | "silence" | { readonly delay_ms: number };
  /** How often; 1 unless said. */
  readonly times?: number;
}

export interface Recorded {
  readonly method: string;
  readonly path: string;
  readonly params: Record<string, unknown>;
  /** The query of a GET, the body of a POST, as they came. */
  readonly encoded: string;
  readonly idempotencyKey: string | null;
  readonly headers: IncomingMessage["headers"];
}

export interface StripeStandIn extends Deliveries {
  readonly url: string;
  readonly books: StripeBooks;
  /** Every request that came in, refused ones too. */
  readonly requests: readonly Recorded[];
  /** The next requests that match go wrong. */
  misbehave(fault: Fault): void;
  stop(): Promise<void>;
}

export interface StandInOptions {
  readonly secretKey?: string;
  readonly webhookSecret?: string;
  readonly clock?: Clock;
}

export const TEST_SECRET_KEY = "sk_test_standin_0123456789";
export const TEST_WEBHOOK_SECRET = "whsec_standin_0123456789";

interface Kept {
  readonly request: string;
  /** Null while the first request is still on its way. */
  answer: { readonly status: number; readonly body: unknown } | null;
}

export async function startStripeStandIn(options: StandInOptions = {}): Promise<StripeStandIn> {
  const { secretKey = TEST_SECRET_KEY, webhookSecret = TEST_WEBHOOK_SECRET, clock = systemClock } = options;
  const deliveries = createDeliveries({ secret: webhookSecret, clock });
  const requests: Recorded[] = [];
  const kept = new Map<string, Kept>();
  let faults: (Fault & { left: number })[] = [];
  const stopped = new AbortController();

  const server = createServer((request, response) => {
    handle(request, response).catch((error: unknown) => {
      if (!response.headersSent) send(response, 500, { error: { type: "api_error", message: String(error) } });
      else response.destroy();
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`; // a server that listens on TCP has one
  const books = createStripeBooks({
    now: () => clock.now(),
    live: secretKey.includes("_live_"),
    payUrl: `${url}/pay`,
    onEvent: (event) => deliveries.push(event),
  });

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname: path, search } = new URL(request.url ?? "/", url);
    const method = request.method ?? "GET";
    let text = "";
    for await (const chunk of request.setEncoding("utf8")) text += String(chunk);
    const key = request.headers["idempotency-key"];
    const idempotencyKey = typeof key === "string" ? key : null;
    const encoded = method === "GET" ? search.slice(1) : text;
    const call: Call = { method, path, params: parseForm(encoded) };
    requests.push({ ...call, encoded, idempotencyKey, headers: request.headers });

    const paying = /^\/pay\/(cs_\w+)$/.exec(path)?.[1];
    if (paying !== undefined) {
      send(response, 200, { paid_by: books.pay(paying) });
      return;
    }
    if (request.headers.authorization !== `Bearer ${secretKey}`) {
      send(response, 401, {
        error: { type: "invalid_request_error", message: "Invalid API Key provided: sk_test_*****" },
      });
      return;
    }
    const before = takeFault(method, path, "before");
    if (before && (await goWrong(before, response))) return;

    const earlier = idempotencyKey === null || method !== "POST" ? undefined : kept.get(idempotencyKey);
    const same = `${path}?${text}`;
    if (earlier && earlier.request !== same) {
      const message =
        "Keys for idempotent requests can only be used with the same parameters they were first used with.";
      send(response, 400, { error: { type: "idempotency_error", message } });
      return;
    }
    if (earlier && !earlier.answer) {
      const message = "There is currently another in-progress request using this Idempotent Key.";
      send(response, 409, { error: { type: "idempotency_error", code: "idempotency_key_in_use", message } });
      return;
    }
    const record: Kept = earlier ?? { request: same, answer: null };
    if (idempotencyKey !== null && method === "POST") kept.set(idempotencyKey, record);

    const after = takeFault(method, path, "after");
    let answer = earlier?.answer ?? act(call);
    // Stripe keeps what it answered, a 500 as well: the same key meets it again.
    if (after && typeof after.how === "object" && "status" in after.how) answer = failure(after.how.status);
    // While it is late, the key is in use.
    if (after && typeof after.how === "object" && "delay_ms" in after.how) await goWrong(after, response);
    record.answer = answer;
    // A request whose parameters were refused never began, so its key is free again.
    if (idempotencyKey !== null && answer.status === 400) kept.delete(idempotencyKey);
    if (after && typeof after.how === "string" && (await goWrong(after, response))) return;
    send(response, answer.status, answer.body, earlier ? { "Idempotent-Replayed": "true" } : {});
  }

  function act(call: Call): { status: number; body: unknown } {
    try {
      return { status: 200, body: answerCall(books, call) };
    } catch (error) {
      if (!(error instanceof StripeRefusal)) throw error;
      return { status: error.status, body: { error: error.body } };
    }
  }

  function takeFault(method: string, path: string, when: Fault["when"]): Fault | undefined {
    const fault = faults.find((f) => f.when === when && f.path.test(path) && (f.method ?? method) === method);
    if (fault) fault.left -= 1;
    faults = faults.filter(({ left }) => left > 0);
    return fault;
  }

  /** True when the request is over by it. */
  async function goWrong({ how }: Fault, response: ServerResponse): Promise<boolean> {
    if (how === "cut") response.destroy();
    else if (how === "silence") {
      await new Promise<void>((resolve) => stopped.signal.addEventListener("abort", () => resolve(), { once: true }));
      response.destroy();
    } else if ("status" in how) {
      const { status, body } = failure(how.status);
      send(response, status, body);
    } else {
      await delay(how.delay_ms, undefined, { signal: stopped.signal }).catch(() => undefined); // stopping ends it early
      return false;
    }
    return true;
  }

  return {
    ...deliveries,
    // Spreading would have read it once and for all.
    get outbox() {
      return deliveries.outbox;
    },
    url,
    books,
    requests,
    misbehave(fault) {
      faults.push({ ...fault, left: fault.times ?? 1 });
    },
    async stop() {
      stopped.abort();
      server.closeAllConnections();
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
      });
    },
  };
}

const failure = (status: number) => ({
  status,
  body: {
    error: { type: status === 429 ? "rate_limit_error" : "api_error", message: "Something went wrong at Stripe." },
  },
});

function send(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  response
    .writeHead(status, {
      "content-type": "application/json",
      "request-id": `req_${randomBytes(7).toString("hex")}`,
      ...headers,
    })
    .end(JSON.stringify(body));
}
