/** Requests as the published client sends them, for app.inject and for real sockets. */
import type { FastifyInstance, LightMyRequestResponse } from "fastify";
import sharp from "sharp";

import { actionsFile } from "./npy-writer.ts";

export interface Part {
  readonly name: string;
  readonly body: Buffer | string;
  readonly filename?: string;
}

const BOUNDARY = "test-boundary-7d1f";

export function formBody(parts: readonly Part[]): Buffer {
  const chunks = parts.flatMap(({ name, body, filename }) => [
    Buffer.from(
      `--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"` +
        (filename === undefined
          ? "\r\n\r\n"
          : `; filename="${filename}"\r\nContent-Type: application/octet-stream\r\n\r\n`),
    ),
    Buffer.from(body),
    Buffer.from("\r\n"),
  ]);
  return Buffer.concat([...chunks, Buffer.from(`--${BOUNDARY}--\r\n`)]);
}

export const FORM_TYPE = `multipart/form-data; boundary=${BOUNDARY}`;

/** A small photograph, not of any model's size. */
export const framePng = (): Promise<Buffer> =>
  sharp({ create: { width: 40, height: 30, channels: 3, background: { r: 200, g: 100, b: 50 } } })
    .png()
    .toBuffer();

/** 48 actions, so 49 frames and 245 mils. */
export const predictParts = async (fields: Record<string, string> = {}): Promise<Part[]> => [
  { name: "frame", body: await framePng(), filename: "frame.png" },
  { name: "actions", body: actionsFile(48, 2), filename: "actions.npy" },
  ...Object.entries(fields).map(([name, body]) => ({ name, body })),
];

export const rolloutParts = async (params: string): Promise<Part[]> => [
  { name: "start_frame", body: await framePng(), filename: "frame.png" },
  { name: "actions", body: actionsFile(48, 2), filename: "actions.npy" },
  { name: "params", body: params },
];

export function postForm(
  app: FastifyInstance,
  url: string,
  apiKey: string,
  parts: readonly Part[],
  headers: Record<string, string> = {},
): Promise<LightMyRequestResponse> {
  return app.inject({
    method: "POST",
    url,
    headers: { authorization: `Bearer ${apiKey}`, "content-type": FORM_TYPE, ...headers },
    payload: formBody(parts),
  });
}

export const getWithKey = (app: FastifyInstance, url: string, apiKey: string): Promise<LightMyRequestResponse> =>
  app.inject({ method: "GET", url, headers: { authorization: `Bearer ${apiKey}` } });
