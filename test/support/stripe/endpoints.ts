/** The endpoints of Stripe's API that we use, over the stand-in's books; refusals in Stripe's own shape. */
import type { StripeBooks } from "./books.ts";
import { field, type FormValue, texts } from "./form.ts";
import type { StripeObject } from "./objects.ts";

export interface Call {
  readonly method: string;
  readonly path: string;
  readonly params: Record<string, FormValue>;
}

export class StripeRefusal extends Error {
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;

  constructor(status: number, body: { message: string; code?: string; param?: string }) {
    super(body.message);
    this.status = status;
    this.body = { type: "invalid_request_error", ...body };
  }
}

const missing = (what: string, id: string, param: string): StripeRefusal =>
  new StripeRefusal(param === "id" ? 404 : 400, {
    message: `No such ${what}: '${id}'`,
    code: "resource_missing",
    param,
  });

/** Throws StripeRefusal. */
export function answerCall(books: StripeBooks, { method, path, params }: Call): unknown {
  const [, resource = "", id, action] =
    /^\/v1\/(checkout\/sessions|[a-z_]+)(?:\/([^/]+))?(?:\/([a-z]+))?$/.exec(path) ?? [];
  const what = `${method} ${resource}${id === undefined ? "" : "/:id"}${action === undefined ? "" : `/${action}`}`;
  switch (what) {
    case "POST customers":
      return books.createCustomer({ email: field(params, "email") ?? null, metadata: texts(params["metadata"]) });
    case "POST checkout/sessions":
      return createSession(books, params);
    case "GET checkout/sessions":
      return page(books.sessions, path, params);
    case "GET payment_intents":
      return page(books.payments, path, params);
    case "GET payment_intents/:id":
      return one(books.payments, "payment_intent", id);
    case "GET events":
      return page(new Map(books.events.map((event) => [event.id, event])), path, params);
    case "GET refunds":
      requirePayment(books, params);
      return page(books.refunds, path, params);
    case "GET disputes":
      requirePayment(books, params);
      return page(books.disputes, path, params);
    case "GET disputes/:id":
      return one(books.disputes, "dispute", id);
    default:
      throw new StripeRefusal(404, { message: `Unrecognized request URL (${method}: ${path}).` });
  }
}

function one<T>(map: ReadonlyMap<string, T>, what: string, id = ""): T {
  const found = map.get(id);
  if (!found) throw missing(what, id, "id");
  return found;
}

/** A list that is asked for by a payment is refused where there is no such payment. */
function requirePayment(books: StripeBooks, params: Record<string, FormValue>): void {
  const id = field(params, "payment_intent");
  if (id !== undefined && !books.payments.has(id)) throw missing("payment_intent", id, "payment_intent");
}

function createSession(books: StripeBooks, params: Record<string, FormValue>): StripeObject {
  const required = (...path: (string | number)[]): string => {
    const value = field(params, ...path);
    if (value !== undefined && value !== "") return value;
    const param = path.reduce<string>((name, key) => (name === "" ? String(key) : `${name}[${key}]`), "");
    throw new StripeRefusal(400, { message: `Missing required param: ${param}.`, code: "parameter_missing", param });
  };
  if (required("mode") !== "payment") throw new StripeRefusal(400, { message: "this stand-in takes payments only" });
  required("success_url");
  const customer = field(params, "customer") ?? null;
  if (customer !== null && !books.customers.has(customer)) throw missing("customer", customer, "customer");
  const amount = Number(required("line_items", 0, "price_data", "unit_amount"));
  if (!Number.isInteger(amount) || amount < 50) {
    throw new StripeRefusal(400, {
      message: "The Checkout Session's total amount is too small.",
      code: "amount_too_small",
    });
  }
  required("line_items", 0, "price_data", "product_data", "name");
  const intent = params["payment_intent_data"];
  return books.createSession({
    amount: amount * Number(required("line_items", 0, "quantity")),
    currency: required("line_items", 0, "price_data", "currency"),
    customer,
    client_reference_id: field(params, "client_reference_id") ?? null,
    metadata: texts(params["metadata"]),
    payment_metadata: typeof intent === "object" && !Array.isArray(intent) ? texts(intent["metadata"]) : {},
  });
}

/** Newest first, as Stripe lists; filters by `created[gte]`, by types and by what a list can be asked for. */
function page(all: ReadonlyMap<string, StripeObject>, path: string, params: Record<string, FormValue>): unknown {
  const limit = Number(field(params, "limit") ?? 10);
  if (!Number.isInteger(limit) || limit < 1 || limit > 100) {
    throw new StripeRefusal(400, { message: "This value must be between 1 and 100.", param: "limit" });
  }
  const since = Number(field(params, "created", "gte") ?? 0);
  const until = Number(field(params, "created", "lte") ?? Number.MAX_SAFE_INTEGER);
  const types = params["types"];
  const payment = field(params, "payment_intent");
  const matching = [...all.values()]
    .toReversed()
    .filter(({ created }) => created >= since && created <= until)
    .filter(({ type }) => !Array.isArray(types) || types.includes(String(type)))
    .filter((object) => payment === undefined || object["payment_intent"] === payment);
  const after = field(params, "starting_after");
  const start = after === undefined ? 0 : matching.findIndex(({ id }) => id === after) + 1;
  if (after !== undefined && start === 0) throw missing("object", after, "starting_after");
  const data = matching.slice(start, start + limit);
  return { object: "list", url: path, has_more: start + limit < matching.length, data };
}
