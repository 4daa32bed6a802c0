/**
 * A consumer in a process of its own, for tests that kill it: tells its parent what it meets, and holds each job
 * until it is told to finish it (or killed).
 */
import { createLog } from "#platform/log.ts";

import { BYSTANDER, type FromConsumer, openTestQueue, type QueueAddress, type ToConsumer } from "./test-queue.ts";

const address = JSON.parse(process.env["QUEUE_ADDRESS"] ?? "{}") as QueueAddress; // written by startConsumerProcess
const { queues, queue } = await openTestQueue(address, createLog("consumer", "silent"));
const tell = (message: FromConsumer): void => void process.send?.(message);

let told = Promise.withResolvers<ToConsumer>();
await queues.signals.subscribe(["cancel"], (signal) => tell({ type: "signal", signal }));
const consumer = await queue.consume({
  concurrency: 1,
  isSuspect: ({ n }) => n !== BYSTANDER,
  async handle(job) {
    tell({ type: "active", id: job.id, data: job.data, stalledCount: job.stalledCount });
    let message = await told.promise;
    for (; message === "say whose"; message = await told.promise) tell({ type: "ours", ours: await job.stillOurs() });
    if (message !== "release") return;
    await job.release({ n: 99 }).catch((error: unknown) => tell({ type: "refused", reason: String(error) }));
  },
  async onGivenUp(id, data, reason) {
    tell({ type: "given-up", id, data, reason });
  },
});

process.on("message", (message: ToConsumer) => {
  told.resolve(message);
  told = Promise.withResolvers();
  if (message !== "stop") return;
  void consumer
    .stop()
    .then(() => queues.stop())
    // With the channel gone nothing may keep this process alive.
    .then(() => process.disconnect());
});
tell({ type: "ready" });
