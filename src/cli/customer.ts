/** The API as the demo uses it: multipart in, video out of the same answer. */
import { createApi } from "./api/client.ts";
import { createForm, uploadOf } from "./api/multipart.ts";
import { BalanceReply } from "./api/replies.ts";

export interface DreamRequest {
  readonly url: string;
  readonly apiKey: string;
  readonly frame: Uint8Array;
  /** Content of an .npy file. */
  readonly actions: Uint8Array;
  /** Form fields beside the files: seed, num_steps, guidance, prompt, model. */
  readonly fields: Readonly<Record<string, string>>;
}

export interface DreamReply {
  readonly video: Buffer;
  readonly frames: number;
  readonly engineWallMs: number;
  /** Request sent to last byte received. */
  readonly totalMs: number;
}

/** Longer than the server's own bound of 285 s, so that its answer, and not our impatience, ends the call. */
const ANSWER_TIMEOUT_MS = 295_000;

/** Throws ApiProblem with the server's own words when it refuses. */
export async function dream({ url, apiKey, frame, actions, fields }: DreamRequest): Promise<DreamReply> {
  const form = createForm([
    ["frame", uploadOf("start_frame.png", "image/png", frame)],
    ["actions", uploadOf("actions.npy", "application/octet-stream", actions)],
    ...Object.entries(fields),
  ]);
  const startedMs = performance.now();
  const api = createApi({ url, key: apiKey });
  const response = await api.open("POST", "/v1/predict", { form, timeoutMs: ANSWER_TIMEOUT_MS });
  const video = Buffer.from(await response.arrayBuffer());
  const header = (name: string): string => response.headers.get(`x-dreamengine-${name}`) ?? "";
  return {
    video,
    frames: Number(header("frames")),
    engineWallMs: Number(header("engine-wall-ms")),
    totalMs: performance.now() - startedMs,
  };
}

export async function balanceMils(url: string, apiKey: string): Promise<number> {
  return (await createApi({ url, key: apiKey }).get("/v1/billing/balance", BalanceReply)).balance_mils;
}
