/**
 * A consumer in a process of its own, for tests that kill it: tells its parent what it meets, and holds each job
 * until it is told to finish it (or killed).
 */
import { createLog } from "#platform/log.ts";

import { openTestQueue, type QueueAddress } from "./test-queue.ts";

export type FromConsumer =
  | { readonly type: "ready" }
  | { readonly type: "active"; readonly id: string; readonly data: unknown; readonly stalledCount: number }
  | { readonly type: "given-up"; readonly id: string; readonly data: unknown; readonly reason: string }
  | { readonly type: "signal"; readonly signal: unknown };
export type ToConsumer = "finish" | "stop";

const address = JSON.parse(process.env["QUEUE_ADDRESS"] ?? "{}") as QueueAddress; // written by startConsumerProcess
const { queues, queue } = await openTestQueue(address, createLog("consumer", "warn"));
const tell = (message: FromConsumer): void => void process.send?.(message);

let finish = Promise.withResolvers<void>();
await queues.signals.subscribe(["cancel"], (signal) => tell({ type: "signal", signal }));
const consumer = await queue.consume({
  concurrency: 1,
  async handle(job) {
    tell({ type: "active", id: job.id, data: job.data, stalledCount: job.stalledCount });
    await finish.promise;
  },
  async onGivenUp(id, data, reason) {
    tell({ type: "given-up", id, data, reason });
  },
});

process.on("message", (message: ToConsumer) => {
  finish.resolve();
  finish = Promise.withResolvers<void>();
  if (message === "finish") return;
  void consumer
    .stop()
    .then(() => queues.stop())
    // With the channel gone nothing may keep this process alive.
    .then(() => process.disconnect());
});
tell({ type: "ready" });
