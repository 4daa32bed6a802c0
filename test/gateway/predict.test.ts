import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";

import { extract } from "tar-stream";

import { mils } from "#contract/mils.ts";
import { balanceOf } from "#ledger/ledger.ts";

import { actionsFile } from "./support/npy-writer.ts";
import { formBody, framePng, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway();
});
afterAll(() => t.stop());
beforeEach(() => {
  t.worker.fate = "succeed";
});

test("answers a predict with the video and what it cost", async () => {
  const key = await t.newKey();
  const answer = await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "7" }));
  expect(answer.statusCode, answer.body).toBe(200);
  expect(answer.headers["content-type"]).toBe("video/mp4");
});
