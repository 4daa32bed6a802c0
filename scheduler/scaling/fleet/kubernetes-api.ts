/**
 * The few requests that the driver makes of a Kubernetes API server, by node:https. The official client would bring a hundred
 * types and thirty packages for a list, a get and a patch.
 *
 * A pool is listed anew at each look instead of being watched: the server answers from memory (`resourceVersion=0`), and a list
 * either is of this moment or fails, where a watch whose connection died silently shows the past for as long as nobody notices.
 */
import { readFile } from "node:fs/promises";
import { Agent, request } from "node:https";
import { join } from "node:path";

import { type Static, type TSchema, Type } from "typebox";
import { Compile } from "typebox/compile";

import type { Service } from "#platform/lifecycle.ts";

/** Below what a look may take (scaling/pool-loop.ts), together with the question to each worker. */
const REQUEST_TIMEOUT_MS = 3_000;
/** A pod is some 10 kB; a page has as many as this, and a pool never more than 64 and those that drain. */
const PAGE_ITEMS = 500;
const PAGES_MAX = 10;
const BODY_BYTES_MAX = 64 * 2 ** 20;
/** Where Kubernetes puts it in every container that has a service account. */
const SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount";

/** The server was not reached, or refused. */
export class KubernetesError extends Error {
  override readonly name = "KubernetesError";
  /** HTTP status; null: no answer. */
  readonly status: number | null;

  constructor(message: string, status: number | null, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
  }
}

export interface KubernetesAccess {
  /** Such as https://10.0.0.1:443. */
  readonly url: string;
  readonly namespace: string;
  /** Both are read before every request: the token in it ends after an hour, and a new one lies there before that. */
  readonly tokenFile: string;
  readonly caFile: string;
}

export interface KubernetesApi extends Service {
  /** Every object that has these labels. Rejects with KubernetesError. */
  list<T extends TSchema>(path: string, labels: Readonly<Record<string, string>>, item: T): Promise<Static<T>[]>;
  /** Null when there is none of that name. */
  get<T extends TSchema>(path: string, schema: T): Promise<Static<T> | null>;
  /** A JSON merge patch; false when the object is gone. */
  patch(path: string, body: object): Promise<boolean>;
}

/** How a process in a pod reaches its cluster. `env` is the environment that Kubernetes gives every container. */
export async function inClusterAccess(
  env: Readonly<Record<string, string | undefined>>,
  folder = SERVICE_ACCOUNT_FOLDER,
): Promise<KubernetesAccess> {
  const { KUBERNETES_SERVICE_HOST: host = "", KUBERNETES_SERVICE_PORT: port = "443" } = env;
  if (host === "") {
    throw new KubernetesError(
      "FLEET=kubernetes: expected to run in a pod (KUBERNETES_SERVICE_HOST is not set); elsewhere use FLEET=local or none",
      null,
    );
  }
  const namespace = await readFile(join(folder, "namespace"), "utf8").catch((error: unknown) => {
    throw new KubernetesError(
      `FLEET=kubernetes: expected a service account in ${folder}; does the pod have automountServiceAccountToken: true?`,
      null,
      { cause: error },
    );
  });
  return {
    url: `https://${host.includes(":") ? `[${host}]` : host}:${port}`,
    namespace: namespace.trim(),
    tokenFile: join(folder, "token"),
    caFile: join(folder, "ca.crt"),
  };
}

const Page = Compile(
  Type.Object({
    metadata: Type.Optional(Type.Object({ continue: Type.Optional(Type.String()) })),
    items: Type.Array(Type.Unknown()),
  }),
);
const Refusal = Compile(Type.Object({ message: Type.String() }));

export function createKubernetesApi(
  { url, tokenFile, caFile }: KubernetesAccess,
  { timeoutMs = REQUEST_TIMEOUT_MS } = {},
): KubernetesApi {
  const stopped = new AbortController();
  let connections: { readonly ca: string; readonly agent: Agent } | null = null;

  /** Of the authority that is in the file now. */
  function agentFor(ca: string): Agent {
    if (connections?.ca === ca) return connections.agent;
    connections?.agent.destroy();
    connections = { ca, agent: new Agent({ ca, keepAlive: true, maxSockets: 16 }) };
    return connections.agent;
  }

  async function call(method: "GET" | "PATCH", path: string, body?: object): Promise<unknown> {
    const what = `${method} ${path.replace(/\?.*/, "")}`;
    try {
      const [token, ca] = await Promise.all([readFile(tokenFile, "utf8"), readFile(caFile, "utf8")]);
      const { status, text } = await send(new URL(path, url), {
        method,
        agent: agentFor(ca),
        signal: AbortSignal.any([stopped.signal, AbortSignal.timeout(timeoutMs)]),
        headers: {
          authorization: `Bearer ${token.trim()}`,
          accept: "application/json",
          ...(body === undefined ? {} : { "content-type": "application/merge-patch+json" }),
        },
        body: body === undefined ? null : JSON.stringify(body),
      });
      if (status >= 200 && status < 300) return parse(text);
      throw new KubernetesError(`${what}: ${status} ${reasonOf(text)}`, status);
    } catch (error) {
      if (error instanceof KubernetesError) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw new KubernetesError(`${what}: the API server does not answer (${why})`, null, { cause: error });
    }
  }

  async function listPages(path: string, query: Readonly<Record<string, string>>): Promise<unknown[]> {
    const items: unknown[] = [];
    let next: string | undefined;
    for (let page = 0; page < PAGES_MAX; page++) {
      // The rest of a list is of the state that its beginning was of; only the beginning may come from memory.
      const part = next === undefined ? { resourceVersion: "0" } : { continue: next };
      const parameters = new URLSearchParams({ ...query, limit: String(PAGE_ITEMS), ...part });
      const answer = await call("GET", `${path}?${parameters.toString()}`);
      if (!Page.Check(answer)) throw new KubernetesError(`GET ${path}: expected a list, got something else`, null);
      items.push(...answer.items);
      next = answer.metadata?.continue;
      if (next === undefined || next === "") return items;
    }
    throw new KubernetesError(`GET ${path}: expected at most ${PAGES_MAX * PAGE_ITEMS} objects, got more`, null);
  }

  return {
    async list(path, labels, item) {
      const selector = Object.entries(labels).map(([name, value]) => `${name}=${value}`);
      const query = { labelSelector: selector.join(",") };
      const items = await listPages(path, query).catch((error: unknown) => {
        // Between two pages the server forgot the state that they were of: once more from the beginning.
        if (error instanceof KubernetesError && error.status === 410) return listPages(path, query);
        throw error;
      });
      return items.map((one) => checked(item, one, path));
    },
    async get(path, schema) {
      try {
        return checked(schema, await call("GET", path), path);
      } catch (error) {
        if (error instanceof KubernetesError && error.status === 404) return null;
        throw error;
      }
    },
    async patch(path, body) {
      try {
        await call("PATCH", path, body);
        return true;
      } catch (error) {
        if (error instanceof KubernetesError && error.status === 404) return false;
        throw error;
      }
    },
    async stop() {
      stopped.abort();
      connections?.agent.destroy();
    },
  };
}

interface Outgoing {
  readonly method: string;
  readonly agent: Agent;
  readonly signal: AbortSignal;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | null;
}

async function send(url: URL, { body, ...options }: Outgoing): Promise<{ status: number; text: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; text: string }>();
  const sent = request(url, options, (response) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    response.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > BODY_BYTES_MAX) sent.destroy(new Error(`an answer of more than ${BODY_BYTES_MAX} bytes`));
      else chunks.push(chunk);
    });
    response.on("error", reject);
    response.on("end", () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() }));
  });
  sent.on("error", reject);
  sent.end(body);
  return promise;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error("its answer is not JSON", { cause: error });
  }
}

/** What the server says for itself, such as which right is missing. */
function reasonOf(text: string): string {
  try {
    const status: unknown = JSON.parse(text);
    return Refusal.Check(status) ? status.message : "";
  } catch {
    return text.slice(0, 200); // a proxy in between answered, not the API server
  }
}

function checked<T extends TSchema>(schema: T, value: unknown, path: string): Static<T> {
  const compiled = compile(schema);
  if (compiled.Check(value)) return value;
  const [first] = compiled.Errors(value);
  const where = first === undefined ? "" : `: ${first.instancePath} ${first.message}`;
  throw new KubernetesError(`GET ${path}: an object is not as expected${where}`, null);
}

const compiled = new WeakMap<TSchema, ReturnType<typeof Compile>>();

function compile<T extends TSchema>(schema: T): ReturnType<typeof Compile<T>> {
  const known = compiled.get(schema) ?? Compile(schema);
  compiled.set(schema, known);
  return known as ReturnType<typeof Compile<T>>; // it was made from this very schema
}
