/** The programs in docs/webhooks.md, run as they stand there. */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

import { describe, expect, test } from "vitest";

import type { EndpointId } from "#contract/ids.ts";
import { WEBHOOK_EVENTS } from "#contract/webhooks.ts";
import { ATTEMPT_DELAYS_MS } from "#webhooks/schedule.ts";
import { secretText, signatureHeaders } from "#webhooks/secrets.ts";

const run = promisify(execFile);
const page = readFileSync("docs/webhooks.md", "utf8");

function blockOf(language: string): string {
  const [, block] = new RegExp(`\`\`\`${language}\\n([^]*?)\`\`\``).exec(page) ?? [];
  if (block === undefined) throw new Error(`there is no block in ${language}`);
  return block;
}

const root = randomBytes(32);
const signer = { kind: "endpoint", id: "endpoint_1" as EndpointId } as const;
const body = '{"type":"rollout.succeeded","data":{"prompt":"ü"}}';
const nowMs = Date.now();
const rotated = { generation: 2, rotated_at: new Date(nowMs) };
const headersAt = (
  at: number,
  generation: Parameters<typeof signatureHeaders>[2] = { generation: 1, rotated_at: null },
) => signatureHeaders(root, signer, generation, { id: "msg_1", nowMs: at, body: Buffer.from(body) });
const secret = secretText(root, signer, { generation: 1 });

/** [secret, headers, body], and whether they verify. */
const CASES: readonly (readonly [string, Record<string, string>, string, boolean])[] = [
  [secret, headersAt(nowMs), body, true],
  [secret, headersAt(nowMs, rotated), body, true],
  [secretText(root, signer, { generation: 2 }), headersAt(nowMs, rotated), body, true],
  [secretText(root, signer, { generation: 2 }), headersAt(nowMs), body, false],
  [secret, headersAt(nowMs), `${body} `, false],
  [secret, headersAt(nowMs - 600_000), body, false],
  [secret, headersAt(nowMs + 600_000), body, false],
  [secret, { ...headersAt(nowMs), "webhook-id": "msg_2" }, body, false],
  [secret, { ...headersAt(nowMs), "webhook-signature": "v1,short" }, body, false],
];
const INPUT = JSON.stringify(CASES.map(([secret, headers, text]) => ({ secret, headers, text })));
const EXPECTED = CASES.map(([, , , verifies]) => verifies);

test("Python's accepts what is ours and refuses what is not", async () => {
  const program = `${blockOf("python")}
import json, sys
print(json.dumps([verify(c["secret"], c["headers"], c["text"].encode()) for c in json.loads(sys.argv[1])]))`;
  const { stdout } = await run("python3", ["-c", program, INPUT]);
  expect(JSON.parse(stdout)).toEqual(EXPECTED);
});

test("Node's accepts what is ours and refuses what is not", async () => {
  const program = `${blockOf("js")}
console.log(JSON.stringify(JSON.parse(process.argv[1]).map((c) => verify(c.secret, c.headers, Buffer.from(c.text)))));`;
  const { stdout } = await run(process.execPath, ["--input-type=module", "-e", program, INPUT]);
  expect(JSON.parse(stdout)).toEqual(EXPECTED);
});

describe("the page", () => {
  test.for([...WEBHOOK_EVENTS])("names %s", (event) => {
    expect(page).toContain(`\`${event}\``);
  });

  test("has the schedule as it is", () => {
    const hours = ATTEMPT_DELAYS_MS.slice(4).map((ms) => ms / 3_600_000);
    expect(page.replaceAll(/\s+/g, " ")).toContain(
      `5 seconds, 5 minutes, 30 minutes, ${hours.slice(0, -1).join(", ")} and ${hours.at(-1)} hours`,
    );
  });
});
