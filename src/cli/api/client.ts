/**
 * Our own HTTP API as our commands call it: one key, one base URL, errors in the server's words, and calls that may be
 * repeated are repeated while the server is away or asks for patience.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { Static, TSchema } from "typebox";
import { Compile } from "typebox/compile";

import { UserError } from "../user-error.ts";
import type { Form } from "./multipart.ts";
import { ApiProblem, noAnswer, problemOf } from "./problem.ts";
import { parseWireJson } from "#contract/wire-json.ts";

export interface ApiOptions {
  /**
   * Base URL without a slash at its end; `/m/<slug>` may be part of it. A function is asked before every try, so that a
   * server that comes up elsewhere is found.
   */
  readonly url: string | (() => Promise<string>);
  /** Null for a server with AUTH=off. */
  readonly key: string | null;
  /** How long calls that may be repeated go on being repeated, from their first failure on. */
  readonly patienceMs?: number;
  /** Told once for each call that has to be repeated. */
  readonly onRetry?: (problem: ApiProblem) => void;
}

export interface CallOptions {
  readonly query?: Readonly<Record<string, string | number | undefined>>;
  readonly json?: unknown;
  readonly form?: Form;
  /** Makes a POST one that may be repeated. */
  readonly idempotencyKey?: string;
  /** So does this, where the second call of a kind changes nothing. */
  readonly repeatable?: true;
  readonly signal?: AbortSignal;
  /** Bytes of the form that were handed to the network, in total; starts over when the call is repeated. */
  readonly onSent?: (bytes: number) => void;
  /** For the answer, or for its head where `open` gives the rest. Unset: a minute; for forms none, their length decides. */
  readonly timeoutMs?: number;
  /** Unset: the client's. */
  readonly patienceMs?: number;
}

type Method = "GET" | "POST" | "DELETE";
type Read<T> = (response: Response) => Promise<T>;

export interface Api {
  get<S extends TSchema>(path: string, schema: S, options?: CallOptions): Promise<Static<S>>;
  post<S extends TSchema>(path: string, schema: S, options?: CallOptions): Promise<Static<S>>;
  delete<S extends TSchema>(path: string, schema: S, options?: CallOptions): Promise<Static<S>>;
  /** The answer itself, its body unread; any 2xx. */
  open(method: "GET" | "POST", path: string, options?: CallOptions): Promise<Response>;
}

const PATIENCE_MS = 5_000;
const BACKOFF_MS = 250;
const BACKOFF_MAX_MS = 4_000;
/** A server that asks for more than this has other worries than us. */
const RETRY_AFTER_MAX_MS = 60_000;
const ANSWER_TIMEOUT_MS = 60_000;
/** Answered within moments of a repetition being allowed: capacity, restarts, proxies. 500 would happen again. */
const PASSING_STATUSES = [502, 503, 504];

export function createApi({ url, key, patienceMs = PATIENCE_MS, onRetry = () => undefined }: ApiOptions): Api {
  const locate = typeof url === "string" ? async () => url : url;

  /** The limit is on what `read` takes, too. */
  async function once<T>(method: string, path: string, options: CallOptions, read: Read<T>): Promise<T> {
    const target = new URL(`${await locate()}${path}`);
    for (const [name, value] of Object.entries(options.query ?? {})) {
      if (value !== undefined) target.searchParams.set(name, String(value));
    }
    const headers: Record<string, string> = key === null ? {} : { authorization: `Bearer ${key}` };
    if (options.idempotencyKey !== undefined) headers["idempotency-key"] = options.idempotencyKey;
    const limitMs = options.timeoutMs ?? (options.form ? undefined : ANSWER_TIMEOUT_MS);
    const late = new AbortController();
    const timer =
      limitMs === undefined
        ? undefined
        : setTimeout(() => late.abort(new Error(`nothing within ${limitMs / 1_000} s`)), limitMs);
    const signal = options.signal ? AbortSignal.any([options.signal, late.signal]) : late.signal;
    try {
      const response = await fetch(target, { method, headers, signal, redirect: "error", ...bodyOf(options, headers) });
      if (!response.ok) throw await problemOf(response);
      return await read(response);
    } catch (error) {
      options.signal?.throwIfAborted();
      throw error instanceof ApiProblem ? error : noAnswer(target.href, error);
    } finally {
      clearTimeout(timer);
    }
  }

  async function send<T>(method: Method, path: string, options: CallOptions, read: Read<T>): Promise<T> {
    const repeatable = method === "GET" || options.idempotencyKey !== undefined || options.repeatable === true;
    const rules = { repeatable, patienceMs: options.patienceMs ?? patienceMs, onRetry, signal: options.signal };
    return patiently(rules, () => once(method, path, options, read));
  }

  async function call<S extends TSchema>(method: Method, path: string, schema: S, options: CallOptions = {}) {
    const value = await parsed(await send(method, path, options, (response) => response.text()));
    const check = Compile(schema);
    if (check.Check(value)) return value;
    const { instancePath, message } = check.Errors(value)[0] ?? {};
    throw new UserError(
      `${await locate()}${path} answered what this version does not know: ${instancePath} ${message}`,
    );
  }

  async function parsed(text: string): Promise<unknown> {
    try {
      return parseWireJson(text);
    } catch (error) {
      throw new UserError(`${await locate()} answered something else than JSON. Is it the API's base URL?`, {
        cause: error,
      });
    }
  }

  return {
    open: (method, path, options = {}) => send(method, path, options, async (response) => response),
    get: (path, schema, options) => call("GET", path, schema, options),
    post: (path, schema, options) => call("POST", path, schema, options),
    delete: (path, schema, options) => call("DELETE", path, schema, options),
  };
}

/** Repeats `work` while that may help; for what reads a body, too. */
export async function patiently<T>(
  rules: {
    readonly repeatable: boolean;
    readonly patienceMs: number;
    readonly onRetry: (problem: ApiProblem) => void;
    readonly signal: AbortSignal | undefined;
  },
  work: () => Promise<T>,
): Promise<T> {
  let firstFailureMs: number | undefined;
  for (let failures = 0; ; failures++) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiProblem)) throw error;
      const waitMs = waitBefore(error, failures, rules.repeatable);
      firstFailureMs ??= performance.now();
      const isAsked = error.status === 429;
      const spentMs = performance.now() - firstFailureMs;
      if (waitMs === null || spentMs + waitMs > Math.max(rules.patienceMs, isAsked ? RETRY_AFTER_MAX_MS : 0))
        throw error;
      if (failures === 0) rules.onRetry(error);
      await delay(waitMs, undefined, { ...(rules.signal && { signal: rules.signal }) });
    }
  }
}

/** Milliseconds until the next try; null where there is none. A 429 was refused before anything was done or paid, so anything may be repeated. */
function waitBefore({ status, retryAfterMs }: ApiProblem, failures: number, repeatable: boolean): number | null {
  const backoffMs = Math.min(BACKOFF_MS * 2 ** failures, BACKOFF_MAX_MS);
  if (status === 429) return Math.max(backoffMs, retryAfterMs ?? 0);
  if (!repeatable) return null;
  if (status === null) return backoffMs;
  // What was asked for the first time is still under way.
  if (status === 409 && retryAfterMs !== null) return Math.max(backoffMs, retryAfterMs);
  return PASSING_STATUSES.includes(status) ? Math.min(Math.max(backoffMs, retryAfterMs ?? 0), BACKOFF_MAX_MS) : null;
}

function bodyOf({ json, form, onSent }: CallOptions, headers: Record<string, string>): RequestInit {
  if (json !== undefined) {
    headers["content-type"] = "application/json";
    return { body: JSON.stringify(json) };
  }
  if (!form) return {};
  headers["content-type"] = form.contentType;
  if (form.bytes !== null) headers["content-length"] = String(form.bytes);
  return { body: ReadableStream.from(counted(form, onSent)), duplex: "half" };
}

async function* counted(form: Form, onSent: CallOptions["onSent"]): AsyncGenerator<Uint8Array> {
  let sent = 0;
  for await (const chunk of form.open()) {
    yield chunk;
    sent += chunk.length;
    onSent?.(sent);
  }
}
