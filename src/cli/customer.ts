/** The API as a customer uses it: multipart in, video out. For `predict` and the demo. */
import { UserError } from "./user-error.ts";

export interface DreamRequest {
  readonly url: string;
  /** Null for a server with AUTH=off. */
  readonly apiKey: string | null;
  readonly frame: Uint8Array;
  /** Content of an .npy file. */
  readonly actions: Uint8Array;
  /** Form fields beside the files: seed, num_steps, guidance, prompt, model. */
  readonly fields: Readonly<Record<string, string>>;
}

export interface DreamReply {
  readonly video: Buffer;
  readonly requestId: string;
  readonly frames: number;
  readonly engineWallMs: number;
  readonly chargeUsd: string;
  /** Request sent to last byte received. */
  readonly totalMs: number;
}

/** Longer than the server's own bound of 285 s, so that its answer, and not our impatience, ends the call. */
const ANSWER_TIMEOUT_MS = 295_000;
const BALANCE_TIMEOUT_MS = 10_000;

/** Throws UserError with the server's own words when it refuses. */
export async function dream({ url, apiKey, frame, actions, fields }: DreamRequest): Promise<DreamReply> {
  const form = new FormData();
  form.set("frame", new Blob([Buffer.from(frame)], { type: "image/png" }), "start_frame.png");
  form.set("actions", new Blob([Buffer.from(actions)], { type: "application/octet-stream" }), "actions.npy");
  for (const [name, value] of Object.entries(fields)) form.set(name, value);

  const startedMs = performance.now();
  const response = await call(`${url}/v1/predict`, apiKey, ANSWER_TIMEOUT_MS, { method: "POST", body: form });
  const video = Buffer.from(await response.arrayBuffer());
  const header = (name: string): string => response.headers.get(`x-dreamengine-${name}`) ?? "";
  return {
    video,
    requestId: header("request-id"),
    frames: Number(header("frames")),
    engineWallMs: Number(header("engine-wall-ms")),
    chargeUsd: header("estimated-charge-usd"),
    totalMs: performance.now() - startedMs,
  };
}

export async function balanceMils(url: string, apiKey: string): Promise<number> {
  const response = await call(`${url}/v1/billing/balance`, apiKey, BALANCE_TIMEOUT_MS);
  const body: unknown = await response.json();
  if (typeof body === "object" && body !== null && "balance_mils" in body) return Number(body.balance_mils);
  throw new Error(`${url}/v1/billing/balance answered without balance_mils`);
}

async function call(url: string, apiKey: string | null, timeoutMs: number, init: RequestInit = {}): Promise<Response> {
  const headers: Record<string, string> = apiKey === null ? {} : { authorization: `Bearer ${apiKey}` };
  let response: Response;
  try {
    response = await fetch(url, { ...init, headers, signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    throw new UserError(`No answer from ${url}: ${reasonOf(error)}. Is the server running (npm start)?`, {
      cause: error,
    });
  }
  if (response.ok) return response;
  throw new UserError(`${url} answered ${response.status}: ${await detailOf(response)}`);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : error.message;
}

async function detailOf(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body === "object" && body !== null && "detail" in body) {
      return typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail);
    }
  } catch {
    // Not JSON: some proxy in between. Its text is all there is.
  }
  return text.slice(0, 500);
}
