/** `webhooks …` as a customer runs it, against a real gateway, notifier and receiver. */
import { once } from "node:events";

import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { settle } from "#rollouts/settle.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { accept, cancelled } from "#test/support/ledger.ts";
import { answers, type Behaviour, type Receiver, startReceiver } from "#test/support/receiver.ts";
import { startNotifierBeside } from "#test/webhooks/gateway-notifier.ts";

import { eventually } from "../queue/test-queue.ts";
import { type CustomerShell, linesOf, openShell } from "./customer-run.ts";

vi.setConfig({ testTimeout: 120_000 });

const URL = "https://hooks.example.com/dream";
const WARNING = /^Keep the secret now, where your receiver reads it: no command shows it again/;

let t: TestGateway;
let server: Service & { readonly url: string };
let notifier: Service;
let key: CreatedKey;
let shell: CustomerShell;
beforeAll(async () => {
  t = await startTestGateway({
    config: { OUTBOUND_PRIVATE: "on" },
    rateLimiter: createLocalRateLimiter(systemClock),
  });
  server = await t.listen();
  notifier = await startNotifierBeside(t, 1_000);
});
afterAll(async () => {
  await notifier.stop();
  await t.stop();
});
const receivers: Receiver[] = [];
beforeEach(async () => {
  key = await t.newKey();
  shell = await openShell(server.url, key.api_key);
});
afterEach(async () => {
  for (const receiver of receivers.splice(0)) await receiver.stop();
  await shell.remove();
});

async function receiver(behaviour: Behaviour): Promise<Receiver> {
  const started = await startReceiver(behaviour);
  receivers.push(started);
  return started;
}

async function create(url: string, ...args: string[]): Promise<{ id: string; secret: string }> {
  return (await shell.json(0, "webhooks", "create", url, ...args)) as never;
}

/** An asynchronous rollout that has just ended as cancelled, and so is told. */
async function told(customer: { readonly customer_id: CustomerId } & Parameters<typeof accept>[1]): Promise<string> {
  const { id } = await accept(t.db, customer);
  await settle(t.db, id, null, cancelled);
  return id;
}

test("create prints the secret and a warning, list has it no more, delete ends it", async () => {
  const made = await shell.run("webhooks", "create", URL, "--event", "rollout.failed", "--event", "dataset.paused");
  expect(made).toMatchObject({ code: 0, stderr: expect.stringMatching(WARNING) });
  const [, id = "", secret = ""] =
    /^Webhook {2}(endpoint_\w+)\nURL {6}https:\S+\nEvents {3}rollout\.failed, dataset\.paused\nState {4}enabled\nSecret {3}(whsec_\S+)\n$/.exec(
      made.stdout,
    ) ?? [];
  expect(secret).not.toBe("");
  const json = await shell.run("webhooks", "create", `${URL}/2`, "--description", "ops", "--json");
  expect(json).toMatchObject({ code: 0, stderr: expect.stringMatching(WARNING) });
  const second = JSON.parse(json.stdout) as { id: string; secret: string };
  expect(second).toMatchObject({ object: "webhook", description: "ops", secret: expect.stringMatching(/^whsec_/) });
  expect(json.stderr).not.toContain("whsec_");

  const table = await shell.run("webhooks", "list");
  expect(table.stdout.split("\n")[0]).toMatch(/^WEBHOOK +CREATED \(UTC\) +STATE +EVENTS +URL$/);
  expect(table.stdout).toMatch(new RegExp(`${second.id} .+ enabled +all +${URL}/2 \\(ops\\)`));
  const lines = await shell.run("webhooks", "list", "--json");
  expect(linesOf(lines).map((webhook) => webhook["id"])).toEqual([id, second.id]);
  expect(table.stdout + lines.stdout).not.toContain("whsec_");

  expect(await shell.run("webhooks", "delete", id)).toMatchObject({ code: 0, stdout: `${id} deleted\n` });
  const again = await shell.run("webhooks", "delete", id);
  expect(again).toMatchObject({
    code: 1,
    stdout: "",
    stderr: expect.stringMatching(/webhook_not_found: .+ \(404, req_/),
  });
  // One of several that is not there does not stop the others.
  const both = await shell.run("webhooks", "delete", id, second.id, "--json");
  expect([both.code, linesOf(both)]).toEqual([3, [{ id: second.id, object: "webhook", deleted: true }]]);
  expect((await shell.run("webhooks", "list", "--json")).stdout).toBe("");
});

describe("test", () => {
  test("says what the receiver answered, which could verify it", async () => {
    const { url, received } = await receiver(answers(200));
    const { id, secret } = await create(`${url}/hook`, "--event", "dataset.paused");
    const { code, stdout, stderr } = await shell.run("webhooks", "test", id);
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: expect.stringMatching(/^queued msg_\w+; Ctrl-C stops the waiting\n$/),
    });
    expect(stdout).toMatch(new RegExp(`^delivered: ${url}/hook answered 200 in \\d+ ms: thanks\n$`));
    const [first] = received;
    if (!first) throw new Error("it was answered");
    expect(new Webhook(secret).verify(first.body, first.headers)).toMatchObject({ type: "webhook.test", data: { id } });
    expect(await shell.json(0, "webhooks", "test", id)).toMatchObject({ state: "delivered", log: [{ status: 200 }] });
  });

  test("ends with 3 where the answer is no 2xx, where there is none, and where none has come yet", async () => {
    const bad = await receiver(answers(500));
    const refused = await shell.run("webhooks", "test", (await create(bad.url)).id);
    expect(refused).toMatchObject({
      code: 3,
      stdout: expect.stringMatching(/^failed: .+ answered 500 in \d+ ms: thanks\n$/),
    });

    const silent = await receiver(() => undefined);
    const { id } = await create(silent.url);
    const unanswered = await shell.run("webhooks", "test", id);
    expect(unanswered).toMatchObject({
      code: 3,
      stdout: expect.stringMatching(/^failed: no answer from .+: no complete answer within 1 s/),
    });

    await notifier.stop();
    const waiting = await shell.run("webhooks", "test", id, "--wait", "1");
    expect(waiting).toMatchObject({
      code: 3,
      stdout: expect.stringMatching(/^After 1 s it has not been sent yet: webhooks deliveries msg_\w+ says/),
    });
    const json = await shell.run("webhooks", "test", id, "--wait", "1", "--json");
    expect([json.code, JSON.parse(json.stdout)]).toMatchObject([3, { state: "pending", attempts: 0 }]);

    const started = shell.start("webhooks", "test", id, "--wait", "100");
    await eventually(async () => started.stderr().includes("Ctrl-C stops"), 60_000);
    const closed = once(started.child, "close");
    started.child.kill("SIGINT");
    expect(await closed).toEqual([130, null]);
    expect(started.stderr()).toMatch(/Stopped waiting: webhooks deliveries msg_\w+ has the answer\./);
    notifier = await startNotifierBeside(t, 1_000);
  });

  test("a disabled one is refused in the server's words", async () => {
    const { id } = await create(URL);
    await t.db.query("UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'a test' WHERE id = $1", [
      id,
    ]);
    const { code, stdout, stderr } = await shell.run("webhooks", "test", id);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/wrong_state: this webhook is disabled \(a test\): PATCH .+ \(409, req_/);
    expect((await shell.run("webhooks", "list")).stdout).toContain("disabled: a test");
  });
});

test("deliveries shows states, attempts, status codes and what is next; resend sends again", async () => {
  const later = { "retry-after": "3600" };
  const { url } = await receiver((response, nth) =>
    (nth === 0 ? response.writeHead(503, later) : response).end("thanks"),
  );
  const { id } = await create(url);
  const rollout = await told(key);
  const listed = async () => linesOf(await shell.run("webhooks", "deliveries", "--json"));
  await eventually(async () => (await listed())[0]?.["last_status"] === 503, 60_000);
  const [delivery] = await listed();
  const message = String(delivery?.["id"]);
  expect(delivery).toMatchObject({
    endpoint: id,
    rollout,
    state: "pending",
    attempts: 1,
    next_attempt_at: expect.any(Number),
  });
  const table = (await shell.run("webhooks", "deliveries", "--rollout", rollout)).stdout.split("\n");
  expect(table[0]).toMatch(/^DELIVERY +CREATED \(UTC\) +EVENT +STATE +ATTEMPTS +LAST +NEXT \(UTC\) +URL$/);
  expect(table[1]).toMatch(
    new RegExp(`^${message} .+ rollout\\.cancelled +pending +1 +503 +\\d{4}-\\d\\d-\\d\\d [\\d:]+ +${url}`),
  );

  expect(await shell.run("webhooks", "resend", message)).toMatchObject({
    code: 0,
    stdout: `${message} is sent again\n`,
  });
  await eventually(async () => (await listed())[0]?.["state"] === "delivered", 60_000);
  const one = (await shell.run("webhooks", "deliveries", message)).stdout;
  expect(one).toMatch(new RegExp(`^Delivery {2}${message}\nEvent {5}rollout\\.cancelled of ${rollout}\nTo {8}${url}`));
  expect(one).toMatch(
    /State {5}delivered\n\nATTEMPT +AT \(UTC\) +MS +STATUS +WHAT CAME BACK\n1 .+ 503 +thanks\n2 .+ 200 +thanks\n/,
  );
  expect(await shell.json(0, "webhooks", "deliveries", message)).toMatchObject({
    id: message,
    log: [{ n: 1 }, { n: 2 }],
  });

  for (const filter of [
    ["--state", "failed"],
    ["--webhook", id.replaceAll(/[0-9a-f]{32}/g, "0".repeat(32))],
  ]) {
    expect(await shell.run("webhooks", "deliveries", ...filter, "--json")).toMatchObject({ code: 0, stdout: "" });
  }
  const refused = await shell.run("webhooks", "resend", "msg_1", message);
  expect(refused).toMatchObject({
    code: 3,
    stdout: `${message} is sent again\n`,
    stderr: expect.stringContaining("msg_1: webhook_not_found"),
  });
});

test("rotate-secret prints the new one; for a day both sign", async () => {
  const { url, received } = await receiver(answers(200));
  const { id, secret: old } = await create(url);
  const rotated = await shell.run("webhooks", "rotate-secret", id);
  expect(rotated).toMatchObject({ code: 0, stderr: expect.stringMatching(WARNING) });
  const [, fresh = ""] =
    /^Secret {3}(whsec_\S+)\nThe one before signs, too, until \d{4}-\d\d-\d\d [\d:]+ UTC\.\n$/.exec(rotated.stdout) ??
    [];
  expect(fresh).not.toBe(old);
  await shell.run("webhooks", "test", id);
  const [first] = received;
  if (!first) throw new Error("it was answered");
  for (const secret of [old, fresh]) new Webhook(secret).verify(first.body, first.headers);
  expect(await shell.json(0, "webhooks", "rotate-secret", id)).toMatchObject({
    object: "webhook_secret",
    secret: expect.stringMatching(/^whsec_/),
  });
});

test.for<[string[], number, RegExp]>([
  [["webhooks"], 2, /Usage/],
  [["webhooks", "create"], 2, /missing required argument 'url'/],
  [["webhooks", "test", "endpoint_1", "--wait", "soon"], 2, /whole number from 1/],
  [["webhooks", "nonsense"], 2, /unknown command/],
  [["webhooks", "create", "hooks.example.com"], 1, /invalid_input: url: expected a URL/],
  [["webhooks", "create", URL, "--event", "rollout.begun"], 1, /invalid_input: body\.events/],
  [["webhooks", "test", "endpoint_1"], 1, /webhook_not_found/],
  [["webhooks", "deliveries", "msg_1"], 1, /webhook_not_found/],
  [["webhooks", "deliveries", "--state", "lost"], 1, /state/],
  [["webhooks", "list", "--key", "dre_wrong"], 1, /malformed_key: .+ \(401, req_/],
])("%s ends with %i", async ([args, code, message]) => {
  const ran = await shell.run(...args);
  expect(ran.stderr).toMatch(message);
  expect(ran.stderr).not.toMatch(/\n\s+at /);
  expect({ code: ran.code, stdout: ran.stdout }).toEqual({ code, stdout: "" });
});
