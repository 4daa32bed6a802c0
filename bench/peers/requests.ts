/** The requests that every system gets: the same frame and actions, seeds and lengths by number; in each one's own form. */
import { readFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";

import sharp from "sharp";

import { createForm, uploadOf } from "#cli/api/multipart.ts";
import type { Manifest } from "#contract/manifest.ts";
import { errorCode } from "#platform/error-code.ts";
import { seededRandom } from "#test/chaos/random.ts";
import { npy } from "#test/support/npy.ts";

/** Above what an answer takes in any overload measured here; a system that needs longer has failed. */
const ANSWER_TIMEOUT_MS = 600_000;

export interface Workload {
  readonly manifest: Manifest;
  readonly frame: Buffer;
  readonly actions: Float32Array;
  /** Actions of a rollout, taken in turn; multiples of the chunk. */
  readonly lengths: readonly number[];
  readonly numSteps: number;
  readonly guidance: number;
}

export interface HttpRequest {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

/** The bundle's example where it has one, else noise of the right shape: a server's speed does not depend on it. */
export async function readWorkload(bundleDir: string, manifest: Manifest, env: NodeJS.ProcessEnv): Promise<Workload> {
  const { height, width, chunk_size: chunk, action_dim: dim } = manifest.shapes;
  const random = seededRandom(1);
  const frame =
    (await readIfThere(join(bundleDir, "example", "start_frame.png"))) ??
    (await sharp(Buffer.from(Array.from({ length: height * width * 3 }, () => random.integer(0, 255))), {
      raw: { height, width, channels: 3 },
    })
      .png()
      .toBuffer());
  const example = await readIfThere(join(bundleDir, "example", "actions.npy"));
  const known = example ? npy.read(example) : new Float32Array();
  const lengths = (env["LENGTHS"] ?? String(Math.max(chunk, known.length / dim))).split(",").map(Number);
  for (const length of lengths) {
    if (!(length > 0) || length % chunk !== 0) {
      throw new Error(`LENGTHS: expected multiples of ${chunk} (actions of a rollout), got ${String(env["LENGTHS"])}`);
    }
  }
  // A longer rollout goes through the example's actions again.
  const { offset, scale } = manifest.actions;
  const actions = Float32Array.from({ length: Math.max(...lengths) * dim }, (_, i) =>
    known.length > 0
      ? (known[i % known.length] ?? 0)
      : (offset[i % dim] ?? 0) + (scale[i % dim] ?? 0) * (2 * random.next() - 1),
  );
  const { default_num_steps, default_guidance } = manifest.sampler;
  return {
    manifest,
    frame,
    actions,
    lengths,
    numSteps: Number(env["STEPS"] ?? default_num_steps),
    guidance: Number(env["GUIDANCE"] ?? default_guidance),
  };
}

/** What the peers take: JSON, their examples' way. */
export function jsonBodyOf(workload: Workload, number: number): Record<string, unknown> {
  const actions = actionsOf(workload, number);
  return {
    frame: workload.frame.toString("base64"),
    actions: Buffer.from(actions.buffer, actions.byteOffset, actions.byteLength).toString("base64"),
    seed: number,
    num_steps: workload.numSteps,
    guidance: workload.guidance,
    prompt: "",
  };
}

export function jsonRequest(path: string, value: unknown): HttpRequest {
  return { path, headers: { "content-type": "application/json" }, body: Buffer.from(JSON.stringify(value)) };
}

/** What ours takes: a form, and a key that pays for it. */
export async function formRequestOf(workload: Workload, number: number, apiKey: string): Promise<HttpRequest> {
  const actions = actionsOf(workload, number);
  const { action_dim: dim } = workload.manifest.shapes;
  const form = createForm([
    ["frame", uploadOf("start_frame.png", "image/png", workload.frame)],
    ["actions", uploadOf("actions.npy", "application/octet-stream", npy.write(actions, [actions.length / dim, dim]))],
    ["seed", String(number)],
    ["num_steps", String(workload.numSteps)],
    ["guidance", String(workload.guidance)],
  ]);
  const parts: Uint8Array[] = [];
  for await (const part of form.open()) parts.push(part);
  return {
    path: "/v1/predict",
    headers: { "content-type": form.contentType, authorization: `Bearer ${apiKey}` },
    body: Buffer.concat(parts),
  };
}

export function framesOf(workload: Workload, number: number): number {
  return lengthOf(workload, number) + 1;
}

/** A connection of its own for each request: kept ones would stay with the process that accepted them first. */
export function post(url: string, { path, headers, body }: HttpRequest): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const options = { method: "POST", agent: false, headers: { ...headers, "content-length": String(body.byteLength) } };
  const sent = request(`${url}${path}`, options, (response) => {
    const chunks: Buffer[] = [];
    response.on("data", (chunk: Buffer) => chunks.push(chunk));
    response.on("error", reject);
    response.on("end", () => {
      const content = Buffer.concat(chunks);
      if (response.statusCode === 200) resolve(content);
      else reject(new Error(`${path} answered ${response.statusCode}: ${content.toString("utf8", 0, 200)}`));
    });
  });
  sent.setTimeout(ANSWER_TIMEOUT_MS, () => sent.destroy(new Error(`no answer within ${ANSWER_TIMEOUT_MS} ms`)));
  sent.on("error", reject);
  sent.end(body);
  return promise;
}

const lengthOf = ({ lengths }: Workload, number: number): number => lengths[number % lengths.length] ?? 0;

function actionsOf(workload: Workload, number: number): Float32Array {
  return workload.actions.slice(0, lengthOf(workload, number) * workload.manifest.shapes.action_dim);
}

async function readIfThere(file: string): Promise<Buffer | null> {
  return readFile(file).catch((error: unknown) => {
    if (errorCode(error) === "ENOENT") return null;
    throw error;
  });
}
