/** The queue that the conformance tests run on either backend, in this process and in children. */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

import { Type, type Static } from "typebox";
import { Compile } from "typebox/compile";

import type { JobId } from "#contract/ids.ts";
import type { Log } from "#platform/log.ts";
import type { JobQueue, QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";

import type { FromConsumer, ToConsumer } from "./consumer-process.ts";

export const TestJob = Type.Object({ n: Type.Number() }, { additionalProperties: false });
export type TestJob = Static<typeof TestJob>;
const testJob = Compile(TestJob);

export interface QueueAddress {
  readonly redis_url: string | undefined;
  readonly database_url: string;
  readonly queue: string;
}

export async function openTestQueue(
  { redis_url, database_url, queue }: QueueAddress,
  log: Log,
): Promise<{ readonly queues: QueueSystem; readonly queue: JobQueue<TestJob> }> {
  const queues = await openQueues({ redis_url, database_url, migrate: false, log });
  return { queues, queue: queues.open(queue, (value) => testJob.Parse(value)) };
}

let jobs = 0;
export const newJobId = (): JobId => `rollout_${String((jobs += 1)).padStart(32, "0")}-1`;

/** Resolves with the first value of `look` that is not null or false; the bound is the test's own. */
export async function eventually<T>(
  look: () => Promise<T | null | false | undefined>,
  limitMs = 10_000,
): Promise<T> {
  const end = performance.now() + limitMs;
  for (;;) {
    const seen = await look();
    if (seen !== null && seen !== false && seen !== undefined) return seen;
    if (performance.now() > end) throw new Error(`condition not met within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export interface ConsumerProcess {
  readonly process: ChildProcess;
  /** The next message of this type that has not been taken yet. */
  next<Kind extends FromConsumer["type"]>(type: Kind, limitMs?: number): Promise<Extract<FromConsumer, { type: Kind }>>;
  tell(message: ToConsumer): void;
  /** SIGKILL, and gone. */
  kill(): Promise<void>;
  exited(limitMs: number): Promise<number | null>;
}

export async function startConsumerProcess(address: QueueAddress): Promise<ConsumerProcess> {
  const child = fork(fileURLToPath(new URL("consumer-process.ts", import.meta.url)), {
    env: { ...process.env, QUEUE_ADDRESS: JSON.stringify(address) },
    execArgv: [],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const messages: FromConsumer[] = [];
  child.on("message", (message) => void messages.push(message as FromConsumer)); // our own process
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));

  const consumer: ConsumerProcess = {
    process: child,
    next: (type, limitMs = 15_000) =>
      eventually(async () => {
        const index = messages.findIndex((message) => message.type === type);
        if (index < 0) return null;
        const [message] = messages.splice(index, 1);
        return message as Extract<FromConsumer, { type: typeof type }>; // found by its type
      }, limitMs),
    tell: (message) => void child.send(message),
    async kill() {
      child.kill("SIGKILL");
      await gone;
    },
    exited: (limitMs) => eventually(async () => (child.exitCode === null ? null : { code: child.exitCode }), limitMs).then(({ code }) => code),
  };
  await consumer.next("ready");
  return consumer;
}
