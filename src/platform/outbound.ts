/**
 * HTTP to addresses that customers name. It must never reach what only we can reach: a name is resolved first, every
 * address it has must be a public one, and the connection goes to exactly the addresses that were checked, so a name
 * server that answers differently the second time gains nothing. No redirects, no proxies from the environment, one
 * time limit over the whole exchange, a limit on the body.
 */
import { lookup as systemLookup, Resolver } from "node:dns/promises";
import { Agent as HttpAgent, type IncomingMessage, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { isIP, type LookupFunction } from "node:net";

import { ApiError } from "#contract/errors.ts";
import { WEBHOOK_URL_CHARS_MAX } from "#contract/limits.ts";

import { errorCode } from "./error-code.ts";
import { isLocalName, isPublic, literalOf } from "./public-address.ts";

export interface OutboundReply {
  readonly status: number;
  /** Names in lower case; of a header that came several times, all of them, separated by ", ". */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
  /** The body went on past bodyBytesMax. */
  readonly truncated: boolean;
}

export interface OutboundRequest {
  readonly method: "GET" | "POST";
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  /** For the whole exchange, from the look-up of the name to the last byte of the answer. */
  readonly timeoutMs: number;
  readonly bodyBytesMax: number;
  /** Ends the exchange; the promise then rejects with its reason. */
  readonly signal?: AbortSignal;
}

export interface Outbound {
  /** Resolves with any status, 3xx included: nothing is followed. Throws OutboundError, or what `signal` was aborted with. */
  request(url: string, options: OutboundRequest): Promise<OutboundReply>;
}

/** Why there was no answer. Its message is for the customer who named the URL: no address that they did not give. */
export class OutboundError extends Error {
  override readonly name = "OutboundError";
}

/** All addresses of a name. Rejects where it has none. */
export type Lookup = (hostname: string) => Promise<readonly string[]>;

export interface OutboundOptions {
  /** Whether private, loopback and link-local addresses may be reached (a laptop, a closed network). */
  readonly allowPrivate: boolean;
  /** Stand-in for DNS. */
  readonly lookup?: Lookup;
  /** PEM of authorities to trust instead of the usual ones. */
  readonly ca?: string;
}

export function createOutbound({ allowPrivate, ca, ...options }: OutboundOptions): Outbound {
  const lookup = options.lookup ?? (allowPrivate ? lookUpAsTheSystem : lookUpInDns);

  return {
    async request(url, request) {
      const parsed = parseUrl(url);
      const limit = AbortSignal.timeout(request.timeoutMs);
      const end = request.signal === undefined ? limit : AbortSignal.any([limit, request.signal]);
      try {
        end.throwIfAborted();
        const addresses = await unlessAborted(end, addressesOf(parsed.hostname, lookup, allowPrivate));
        return await exchange(parsed, addresses, request, end, ca);
      } catch (error) {
        if (request.signal?.aborted) throw request.signal.reason;
        if (limit.aborted) throw noAnswerWithin(request.timeoutMs);
        throw error instanceof OutboundError ? error : new OutboundError(reasonOf(error), { cause: error });
      }
    },
  };
}

/**
 * Refuses what cannot be a target whatever its name resolves to later. Throws ApiError: invalid_input (no http(s) URL,
 * credentials or control characters in it, too long) or url_not_allowed (a literal address that is not public, or this machine's own name).
 */
export function checkOutboundUrl(url: string, field: string, allowPrivate: boolean): void {
  if (url.length > WEBHOOK_URL_CHARS_MAX) {
    throw new ApiError(
      "invalid_input",
      `${field}: expected at most ${WEBHOOK_URL_CHARS_MAX} characters, got ${url.length}`,
    );
  }
  try {
    const { hostname } = parseUrl(url);
    const literal = literalOf(hostname);
    if (!allowPrivate && (literal === null ? isLocalName(hostname) : !isPublic(literal))) {
      throw new ApiError("url_not_allowed", `${field}: ${notPublic(hostname)}`);
    }
  } catch (error) {
    if (!(error instanceof OutboundError)) throw error;
    throw new ApiError("invalid_input", `${field}: ${error.message}`, { cause: error });
  }
}

function parseUrl(url: string): URL {
  // The parser would drop or escape them in silence; as text they can be neither stored nor shown.
  if (/\p{Cc}/u.test(url) || !url.isWellFormed()) {
    throw new OutboundError("expected a URL without control characters and lone surrogates");
  }
  const parsed = URL.parse(url);
  if (parsed === null || !["http:", "https:"].includes(parsed.protocol)) {
    throw new OutboundError("expected a URL such as https://example.com/path");
  }
  if (parsed.username !== "" || parsed.password !== "") {
    throw new OutboundError("expected a URL without a user name and password in it");
  }
  return parsed;
}

const notPublic = (hostname: string): string => `${hostname} is not an address in the public internet`;

/** Every address must be allowed: one of many that is not is how a name is made to lead inside by chance. */
async function addressesOf(hostname: string, lookup: Lookup, allowPrivate: boolean): Promise<readonly string[]> {
  const literal = literalOf(hostname);
  const addresses = literal === null ? await lookup(hostname).catch(cannotLookUp) : [literal];
  if (addresses.length === 0) throw new OutboundError("its host name has no address");
  if (!allowPrivate && !addresses.every(isPublic)) throw new OutboundError(notPublic(hostname));
  return addresses;
}

function cannotLookUp(cause: unknown): never {
  const none = ["ENOTFOUND", "ENODATA", "EBADNAME"].includes(errorCode(cause) ?? "");
  throw new OutboundError(none ? "its host name has no address" : "its host name could not be looked up", { cause });
}

/** For a network of our own: names as every program here knows them, /etc/hosts included. */
const lookUpAsTheSystem: Lookup = async (hostname) =>
  (await systemLookup(hostname, { all: true })).map(({ address }) => address);

/** Of one question to one name server; asked twice. The exchange has its own limit over all. */
const DNS_TIMEOUT_MS = 3_000;

/**
 * For the public internet: DNS alone, whatever /etc/hosts says, and not on the few threads that file access shares, which
 * a name server that never answers would hold.
 */
const lookUpInDns: Lookup = async (hostname) => {
  const resolver = new Resolver({ timeout: DNS_TIMEOUT_MS, tries: 2 });
  const answers = await Promise.allSettled([resolver.resolve4(hostname), resolver.resolve6(hostname)]);
  const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
  const [first] = answers;
  if (addresses.length === 0 && first.status === "rejected") throw first.reason;
  return addresses;
};

/** Instead of a look-up at connecting: the addresses that were checked, and no others. */
function pinnedTo(addresses: readonly string[]): LookupFunction {
  const found = addresses.map((address) => ({ address, family: isIP(address) }));
  return (_hostname, { all }, callback) => {
    const [first] = found;
    if (all || first === undefined) callback(null, found);
    else callback(null, first.address, first.family);
  };
}

function exchange(
  url: URL,
  addresses: readonly string[],
  { method, headers, body, bodyBytesMax }: OutboundRequest,
  end: AbortSignal,
  ca: string | undefined,
): Promise<OutboundReply> {
  const secure = url.protocol === "https:";
  // Made for this request: the shared ones may have a proxy from the environment, and keep connections.
  const agent = secure ? new HttpsAgent({ keepAlive: false }) : new HttpAgent({ keepAlive: false });
  return new Promise<OutboundReply>((resolve, reject) => {
    const request = (secure ? httpsRequest : httpRequest)(url, {
      method,
      agent,
      signal: end,
      lookup: pinnedTo(addresses),
      // Compressed bodies would have to be unpacked to know their size.
      headers: { "user-agent": "dream-engine", "accept-encoding": "identity", ...headers, ...lengthOf(body) },
      // Said again because NODE_TLS_REJECT_UNAUTHORIZED=0 turns the default off.
      ...(secure ? { rejectUnauthorized: true, ...(ca === undefined ? {} : { ca }) } : {}),
    });
    let answered = false;
    request.on("error", reject);
    request.on("response", (response) => {
      answered = true;
      readBody(response, bodyBytesMax)
        .then(({ bytes, truncated }) => {
          const { statusCode: status = 0, headers } = response;
          resolve({ status, headers: flat(headers), body: bytes, truncated });
        })
        .catch(reject)
        // Nothing that still comes is wanted.
        .finally(() => request.destroy());
    });
    // Ends without an answer and without an error: somebody who upgrades to another protocol.
    request.on("close", () => {
      // Else the answer may still be read from what has come.
      if (!answered) reject(new OutboundError("the connection was closed without an answer"));
    });
    request.end(body);
  }).finally(() => agent.destroy());
}

function lengthOf(body: Uint8Array | undefined): Record<string, string> {
  return body === undefined ? {} : { "content-length": String(body.byteLength) };
}

async function readBody(
  response: IncomingMessage,
  bytesMax: number,
): Promise<{ readonly bytes: Buffer; readonly truncated: boolean }> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    const room = bytesMax - size;
    chunks.push(chunk.subarray(0, room));
    size += Math.min(chunk.length, room);
    if (chunk.length > room) return { bytes: Buffer.concat(chunks), truncated: true };
  }
  return { bytes: Buffer.concat(chunks), truncated: false };
}

const flat = (headers: IncomingMessage["headers"]): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, [value].flat().join(", ")]],
    ),
  );

/** A look-up cannot be taken back; what it brings too late is dropped. */
async function unlessAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const abort = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

const noAnswerWithin = (timeoutMs: number): OutboundError =>
  new OutboundError(`no complete answer within ${timeoutMs / 1000} s`);

const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "the connection was refused",
  ECONNRESET: "the connection was closed before the answer was complete",
  EPIPE: "the connection was closed before the answer was complete",
  ETIMEDOUT: "the connection was not answered",
  EHOSTUNREACH: "the host could not be reached",
  ENETUNREACH: "the host could not be reached",
};

function reasonOf(error: unknown): string {
  const code = errorCode(error) ?? "";
  const reason = REASONS[code];
  if (reason !== undefined) return reason;
  if (code.startsWith("HPE_")) return "the answer was not HTTP";
  if (/CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO_/.test(code)) return `no secure connection: ${code}`;
  return "the host could not be reached";
}
