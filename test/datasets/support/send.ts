/** Datasets as a caller sends them. */
import type { LightMyRequestResponse } from "fastify";

import { type Part, postForm } from "#test/gateway/support/requests.ts";
import type { TestGateway } from "#test/gateway/support/test-gateway.ts";

export const FRAME_URL = { url: "https://example.com/frame.png" };
export const ACTIONS_URL = { url: "https://example.com/actions.npy" };

/** A row that is good as it stands. */
export const urlRow = (fields: object = {}): object => ({ start_frame: FRAME_URL, actions: ACTIONS_URL, ...fields });

export const lines = (rows: readonly (object | string)[]): string =>
  rows.map((row) => `${typeof row === "string" ? row : JSON.stringify(row)}\n`).join("");

export function sendDataset(
  { app }: Pick<TestGateway, "app">,
  apiKey: string,
  file: Part,
  params?: object,
  headers: Record<string, string> = {},
): Promise<LightMyRequestResponse> {
  const parts = params === undefined ? [file] : [{ name: "params", body: JSON.stringify(params) }, file];
  return postForm(app, "/v1/datasets", apiKey, parts, headers);
}

export const manifestOf = (rows: readonly (object | string)[]): Part => ({
  name: "manifest",
  body: lines(rows),
  filename: "manifest.jsonl",
});

export const sendRows = (
  gateway: Pick<TestGateway, "app">,
  apiKey: string,
  rows: readonly (object | string)[],
  params?: object,
  headers?: Record<string, string>,
): Promise<LightMyRequestResponse> => sendDataset(gateway, apiKey, manifestOf(rows), params, headers);
