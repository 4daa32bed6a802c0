/** `dream-engine webhooks …`: who is told what, and what became of it, through the HTTP API. */
import type { Command } from "commander";

import { WEBHOOK_EVENTS } from "#contract/webhooks.ts";

import {
  DeletedReply,
  DeliveryPage,
  DeliveryReply,
  DeliveryWithLog,
  NewWebhookReply,
  type Page,
  WebhookList,
  WebhookSecretReply,
} from "../api/replies.ts";
import { type CustomerOptions, endsUsageErrors, openCustomer, parseCount, withCustomer } from "../customer-options.ts";
import { eachId } from "../each-id.ts";
import { EXIT } from "../exit-codes.ts";
import { interruptible } from "../interrupt.ts";
import { tableText, timeText } from "../output.ts";
import { listAll, type PagingOptions, withPaging } from "../paging.ts";
import {
  answerText,
  DELIVERY_HEADING,
  deliveryCells,
  deliveryText,
  WEBHOOK_HEADING,
  webhookCells,
  webhookText,
} from "../webhooks/show.ts";
import { untilAnswered } from "../webhooks/try-out.ts";

interface CreateOptions extends CustomerOptions {
  readonly event?: string[];
  readonly description?: string;
}

interface DeliveriesOptions extends CustomerOptions, PagingOptions {
  readonly webhook?: string;
  readonly rollout?: string;
  readonly dataset?: string;
  readonly state?: string;
}

/** A receiver has 15 s to answer, and a notifier looks every second. */
const TEST_WAIT_S = 20;

export function addWebhooks(program: Command): void {
  const webhooks = endsUsageErrors(program.command("webhooks")).description(
    "URLs of yours that are told of rollouts and datasets, through the HTTP API",
  );
  withCustomer(webhooks.command("list").description("oldest first")).action(list);
  withCustomer(
    webhooks
      .command("create <url>")
      .description("be told at that URL; prints the secret that signs")
      .option("--event <event>", `one of ${WEBHOOK_EVENTS.join(", ")}; again for several; default: all`, collect)
      .option("--description <text>", "for people"),
  ).action(create);
  withCustomer(
    webhooks
      .command("test <id>")
      .description("send webhook.test to it and say what its receiver answers; exit code 3 when that is no 2xx")
      .option("--wait <seconds>", "for the answer", parseCount, TEST_WAIT_S),
  ).action(test);
  withCustomer(
    withPaging(
      webhooks
        .command("deliveries [id]")
        .description("what was sent in the last 30 days, newest first; of one delivery, every attempt")
        .option("--webhook <id>", "to that one")
        .option("--rollout <id>", "about that one")
        .option("--dataset <id>", "about that one")
        .option("--state <state>", "pending, delivered or failed"),
    ),
  ).action(deliveries);
  withCustomer(
    webhooks
      .command("resend <id...>")
      .description("send deliveries again now, whatever became of them; their ids are msg_…"),
  ).action(resend);
  withCustomer(
    webhooks.command("rotate-secret <id>").description("a new secret; the one before signs, too, for 24 hours"),
  ).action(rotateSecret);
  withCustomer(webhooks.command("delete <id...>").description("end them; what waits for them fails")).action(remove);
}

async function list(options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  const { data } = await api.get("/v1/webhooks", WebhookList);
  for (const webhook of data) out.line(webhook);
  if (!out.json) out.say(tableText([WEBHOOK_HEADING, ...data.map(webhookCells)]));
}

async function create(url: string, { event, description, ...options }: CreateOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  // Not repeatable: two calls make two of them.
  const webhook = await api.post("/v1/webhooks", NewWebhookReply, { json: { url, events: event, description } });
  out.document(webhook);
  if (!out.json) out.say(`${webhookText(webhook)}\nSecret   ${webhook.secret}`);
  warnOfSecret();
}

async function test(id: string, { wait, ...options }: CustomerOptions & { wait: number }): Promise<void> {
  const { api, out } = await openCustomer(options);
  let queued: DeliveryReply | undefined;
  const delivery = await interruptible(
    async (signal) => {
      // Sent twice it is two tests, which do no harm.
      queued = await api.post(`${pathOf(id)}/test`, DeliveryReply, { repeatable: true, signal });
      process.stderr.write(`queued ${queued.id}; Ctrl-C stops the waiting\n`);
      return await untilAnswered(api, queued.id, wait * 1_000, signal);
    },
    () => (queued === undefined ? "Interrupted." : `Stopped waiting: webhooks deliveries ${queued.id} has the answer.`),
  );
  out.document(delivery);
  if (delivery.state === "pending") {
    const why = delivery.sending ? "its receiver has not answered yet" : "it has not been sent yet";
    out.say(`After ${wait} s ${why}: webhooks deliveries ${delivery.id} says what becomes of it.`);
  } else if (!out.json) out.say(answerText(delivery));
  if (delivery.state !== "delivered") process.exitCode = EXIT.someFailed;
}

async function deliveries(id: string | undefined, options: DeliveriesOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  if (id !== undefined) {
    const delivery = await api.get(deliveryPath(id), DeliveryWithLog);
    out.document(delivery);
    if (!out.json) out.say(deliveryText(delivery));
    return;
  }
  const { webhook: endpoint, rollout, dataset, state } = options;
  const page = (after: string | number | undefined, limit: number): Promise<Page<DeliveryReply>> =>
    api.get("/v1/webhooks/deliveries", DeliveryPage, { query: { endpoint, rollout, dataset, state, after, limit } });
  await listAll(out, { page, wanted: options, heading: DELIVERY_HEADING, cells: deliveryCells });
}

async function resend(ids: string[], options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  await eachId(ids, async (id) => {
    const delivery = await api.post(`${deliveryPath(id)}/resend`, DeliveryReply);
    out.line(delivery);
    if (!out.json) out.say(`${id} is sent again`);
  });
}

async function rotateSecret(id: string, options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  // Not repeatable: a second rotation ends the secret that receivers have.
  const rotated = await api.post(`${pathOf(id)}/rotate-secret`, WebhookSecretReply);
  out.document(rotated);
  const { secret, previous_signs_until: until } = rotated;
  const overlap = until === null ? "" : `\nThe one before signs, too, until ${timeText(until)} UTC.`;
  if (!out.json) out.say(`Secret   ${secret}${overlap}`);
  warnOfSecret();
}

async function remove(ids: string[], options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  await eachId(ids, async (id) => {
    const deleted = await api.delete(pathOf(id), DeletedReply);
    out.line(deleted);
    if (!out.json) out.say(`${id} deleted`);
  });
}

/** On stderr: stdout may be on its way into a file. */
function warnOfSecret(): void {
  process.stderr.write(
    "Keep the secret now, where your receiver reads it: no command shows it again, and whoever has it can sign as we do.\n",
  );
}

const collect = (value: string, earlier: readonly string[] = []): string[] => [...earlier, value];
const pathOf = (id: string): string => `/v1/webhooks/${encodeURIComponent(id)}`;
const deliveryPath = (id: string): string => `/v1/webhooks/deliveries/${encodeURIComponent(id)}`;
