/** What only a real connection shows: bytes that are no HTTP, bodies that never end, videos in ranges. */
import { once } from "node:events";
import { connect } from "node:net";

import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { SYNC_DEADLINE_MS } from "#contract/limits.ts";
import { startGateway } from "#gateway/server.ts";
import type { CreatedKey } from "#keys/keys.ts";

import { booksOf } from "./support/books.ts";
import { FORM_TYPE, postForm, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let url: URL;
let key: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway();
  url = new URL((await t.listen()).url);
  key = await t.newKey();
});
afterAll(() => t.stop());

/** Sends bytes, reads until the server has answered and closed, or `done` is in what it sent. */
async function talk(bytes: string | Buffer, done = "\u0000"): Promise<string> {
  const socket = connect(Number(url.port), url.hostname);
  await once(socket, "connect");
  let answer = "";
  socket.on("data", (chunk: Buffer) => {
    answer += chunk.toString("latin1");
    if (answer.includes(done)) socket.destroy();
  });
  socket.on("error", () => {}); // a reset is an end like any other; what came before it is looked at
  socket.write(bytes);
  await once(socket, "close");
  return answer;
}

describe("bytes that are no request", () => {
  test.for([
    ["nonsense", "hello\r\n\r\n", 400, "expected an HTTP/1.1 request"],
    [
      "headers without end",
      `GET / HTTP/1.1\r\nX: ${"x".repeat(20_000)}\r\n\r\n`,
      431,
      "expected at most 16 kB of headers",
    ],
  ] as const)("%s is answered with a request id", async ([, bytes, status, detail]) => {
    const answer = await talk(bytes);
    expect(answer).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(answer).toMatch(/X-DreamEngine-Request-Id: req_[0-9a-f]{24}\r\n/);
    const body = JSON.parse(answer.slice(answer.indexOf("\r\n\r\n"))) as {
      detail: string;
      error: { request_id: string };
    };
    expect(body.detail).toBe(detail);
    expect(answer).toContain(`Request-Id: ${body.error.request_id}`);
  });
});

test("a body of unknown length is cut off at 32 MB", async () => {
  const before = await booksOf(t, key.customer_id);
  const chunk = Buffer.alloc(1024 * 1024);
  const frame = Buffer.concat([Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n")]);
  const head =
    `POST /v1/predict HTTP/1.1\r\nHost: ${url.host}\r\nAuthorization: Bearer ${key.api_key}\r\n` +
    `Content-Type: ${FORM_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n`;
  const part = '--test-boundary-7d1f\r\nContent-Disposition: form-data; name="frame"; filename="f"\r\n\r\n';
  const start = Buffer.from(`${head}${Buffer.byteLength(part).toString(16)}\r\n${part}\r\n`);
  const answer = await talk(Buffer.concat([start, ...Array.from({ length: 34 }, () => frame)]), "payload_too_large");
  expect(answer).toMatch(/^HTTP\/1.1 413 /);
  expect(answer).toContain("expected a body of at most 32 MB");
  expect(await booksOf(t, key.customer_id)).toEqual(before);
});

test("a wrong key is answered without waiting for the body", async () => {
  const head =
    `POST /v1/predict HTTP/1.1\r\nHost: ${url.host}\r\nAuthorization: Bearer nonsense\r\n` +
    `Content-Type: ${FORM_TYPE}\r\nContent-Length: 30000000\r\n\r\n`;
  expect(await talk(head, "malformed_key")).toMatch(/^HTTP\/1.1 401 /);
});

test("no connection can be held for ever, and none is cut during the longest wait", () => {
  const { requestTimeout, headersTimeout, timeout, keepAliveTimeout } = t.app.server;
  expect(requestTimeout).toBeGreaterThan(0);
  expect(headersTimeout).toBeGreaterThan(0);
  expect(timeout).toBeGreaterThan(SYNC_DEADLINE_MS);
  expect(keepAliveTimeout).toBeGreaterThan(60_000);
});

test("a port that is taken is said so, with its code", async () => {
  const start = startGateway({ ...t.options, registry: new Registry(), host: url.hostname, port: Number(url.port) });
  await expect(start).rejects.toMatchObject({ code: "EADDRINUSE" });
});

describe("videos by signed link", () => {
  let link: URL;
  let whole: Buffer;
  beforeAll(async () => {
    const made = await fetchRollout();
    link = new URL(made.video_url);
    whole = Buffer.from(await (await fetch(link)).arrayBuffer());
  });
  test("are served whole, for as long as the link lasts", async () => {
    const answer = await fetch(link);
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("video/mp4");
    expect(answer.headers.get("accept-ranges")).toBe("bytes");
    expect(answer.headers.get("cache-control")).toMatch(/^private, max-age=3\d\d\d, immutable$/);
    expect(Number(answer.headers.get("content-length"))).toBe(whole.length);
  });

  test("are served in ranges", async () => {
    const part = await fetch(link, { headers: { range: "bytes=4-7" } });
    expect(part.status).toBe(206);
    expect(await part.text()).toBe("ftyp");
    expect(part.headers.get("content-range")).toBe(`bytes 4-7/${whole.length}`);
    const tail = await fetch(link, { headers: { range: "bytes=-10" } });
    expect(Buffer.from(await tail.arrayBuffer()).equals(whole.subarray(-10))).toBe(true);
    const past = await fetch(link, { headers: { range: `bytes=${whole.length}-` } });
    expect(past.status).toBe(416);
    expect(past.headers.get("content-range")).toBe(`bytes */${whole.length}`);
  });

  test("answer HEAD with the length alone", async () => {
    const answer = await fetch(link, { method: "HEAD" });
    expect(answer.status).toBe(200);
    expect(Number(answer.headers.get("content-length"))).toBe(whole.length);
  });

  test("are refused when anything of the link was changed, with the reason", async () => {
    const other = await fetchRollout();
    const changed = (change: (url: URL) => void): URL => {
      const copy = new URL(link);
      change(copy);
      return copy;
    };
    const later = String(Number(link.searchParams.get("expires")) + 60);
    for (const wrong of [
      changed((it) => it.searchParams.set("candidate", "1")),
      changed((it) => it.searchParams.set("expires", later)),
      changed((it) => it.searchParams.set("signature", "0".repeat(64))),
      changed((it) => (it.pathname = `/v1/rollouts/${other.id}/video`)),
      changed((it) => it.searchParams.delete("signature")),
    ]) {
      const answer = await fetch(wrong);
      expect(answer.status).toBe(403);
      expect(((await answer.json()) as { error: { code: string } }).error.code).toBe("video_url_invalid");
    }
  });

  test("are refused after their time, with the way to a new link", async () => {
    const late = await startTestGateway({ clock: { now: () => Date.now() - 2 * 3_600_000 } });
    try {
      const own = await late.newKey();
      const made = await postForm(late.app, "/v1/rollouts", own.api_key, await rolloutParts("{}"));
      const old = new URL(made.json().video_url);
      const present = await startTestGateway({ db: late.db, blobs: late.blobs });
      const answer = await present.app.inject({ url: old.pathname + old.search });
      expect(answer.statusCode).toBe(403);
      expect(answer.json()).toMatchObject({
        error: { code: "video_url_expired" },
        detail: expect.stringMatching(/^this link expired at .* GET \/v1\/rollouts\/rollout_\w+ with your key/),
      });
      await present.stop();
    } finally {
      await late.stop();
    }
  });

  test("that are not stored any more are 404", async () => {
    const made = await fetchRollout();
    for await (const { key: blob } of t.blobs.list(`rollouts/${made.id}/`)) await t.blobs.delete(blob);
    const answer = await fetch(made.video_url);
    expect(answer.status).toBe(404);
    expect(((await answer.json()) as { detail: string }).detail).toBe("this video is not stored any more");
  });
});

async function fetchRollout(): Promise<{ id: string; video_url: string }> {
  const answer = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), { host: url.host });
  return answer.json();
}
