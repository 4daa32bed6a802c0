/** A client of a gateway that is killed now and then: asks again, as the published client does, until it gets an answer. */
import { setTimeout as delay } from "node:timers/promises";

const RETRYABLE = new Set([429, 502, 503, 504]);
const PAUSE_MS = 250;
/** A gateway comes up in two seconds, and in thirty on a machine that does much else. */
const ASKED_MAX_MS = 120_000;
const CALL_TIMEOUT_MS = 90_000;

export interface Answer {
  readonly status: number;
  readonly body: Buffer;
  /** As it is: the caller says what it takes it for. */
  json(): unknown;
}

interface Call {
  readonly method: "GET" | "POST";
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: FormData | string;
}

export interface PatientClient {
  get(path: string): Promise<Answer>;
  /** `body` is made anew for each try. */
  post(path: string, body?: () => FormData | object, headers?: Readonly<Record<string, string>>): Promise<Answer>;
}

export function createPatientClient(baseUrl: string, apiKey: string): PatientClient {
  async function ask(path: string, call: () => Call): Promise<Answer> {
    const deadline = Date.now() + ASKED_MAX_MS;
    for (;;) {
      const answer = await once(path, call()).catch((error: unknown) => {
        if (Date.now() > deadline) throw new Error(`nobody answered ${path}`, { cause: error });
        return null; // the gateway died under us, or is not up again
      });
      if (answer && (!RETRYABLE.has(answer.status) || Date.now() > deadline)) return answer;
      await delay(PAUSE_MS);
    }
  }

  async function once(path: string, call: Call): Promise<Answer> {
    const response = await fetch(baseUrl + path, {
      ...call,
      headers: { ...call.headers, authorization: `Bearer ${apiKey}` },
      signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
    });
    const body = Buffer.from(await response.arrayBuffer());
    return { status: response.status, body, json: (): unknown => JSON.parse(body.toString()) };
  }

  return {
    get: (path) => ask(path, () => ({ method: "GET", headers: {} })),
    post: (path, body, headers = {}) =>
      ask(path, () => {
        const content = body?.();
        if (content === undefined) return { method: "POST", headers };
        if (content instanceof FormData) return { method: "POST", headers, body: content };
        const json = { ...headers, "content-type": "application/json" };
        return { method: "POST", headers: json, body: JSON.stringify(content) };
      }),
  };
}
