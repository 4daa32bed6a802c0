/** The parts of the queue that need no backend. */
import { Type } from "typebox";
import { expect, test } from "vitest";

import { watchBackend } from "#queue/backend-watch.ts";
import { settlesWithin } from "#platform/bounded.ts";
import { parserOf } from "#queue/parse.ts";
import { createSignals, type Signal, type SignalTransport } from "#queue/signals.ts";

import { silentLog } from "../support/postgres.ts";

test("a backend that stops answering is reported as broken, with the reason", async () => {
  let failing = false;
  const watch = watchBackend({
    probe: () => (failing ? Promise.reject(new Error("refused")) : Promise.resolve()),
    intervalMs: 10,
    brokenAfterMs: 60,
  });
  expect(await settlesWithin(150, watch.broken)).toBe(false);
  failing = true;
  const error = await watch.broken;
  expect(error.message).toMatch(/out of reach/);
  expect(error.cause).toMatchObject({ message: "refused" });
});

test("a backend whose answer never comes is broken too, and is asked once only", async () => {
  let asked = 0;
  const probe = (): Promise<never> => {
    asked += 1;
    return new Promise(() => undefined);
  };
  const watch = watchBackend({ probe, intervalMs: 10, brokenAfterMs: 60 });
  expect((await watch.broken).cause).toMatchObject({ message: "no answer" });
  expect(asked).toBe(1);
});

test("invalid job data says where it is wrong", () => {
  const parse = parserOf(Type.Object({ k: Type.Integer({ minimum: 1 }) }));
  expect(parse({ k: 2 })).toEqual({ k: 2 });
  expect(() => parse({ k: 0 })).toThrow(/^\/k /);
});

/** A transport in memory, whose other end the test holds. */
function signalsOn(transport: Pick<SignalTransport, "send" | "listen">) {
  const wire = { deliver: (_message: string): void => undefined };
  const signals = createSignals((receive) => {
    wire.deliver = receive;
    return { ...transport, close: async () => undefined };
  }, silentLog);
  return { signals, deliver: (message: string) => wire.deliver(message) };
}

test("a signal that does not parse, or a handler that throws, does not stop the others", async () => {
  const { signals, deliver } = signalsOn({ send: async () => undefined, listen: async () => undefined });
  const heard: Signal[] = [];
  await signals.subscribe(["queued"], () => {
    throw new Error("boom");
  });
  await signals.subscribe(["queued"], (signal) => heard.push(signal));
  for (const message of ["{", '{"kind":"unknown"}', '{"kind":"queued"}']) deliver(message);
  expect(heard).toEqual([{ kind: "queued" }]);
});

async function away(): Promise<never> {
  throw new Error("away");
}

test("publishing never rejects; subscribing to a transport that fails does, and leaves nothing behind", async () => {
  const { signals, deliver } = signalsOn({ send: away, listen: away });
  await signals.publish({ kind: "queued" });
  const heard: Signal[] = [];
  await expect(signals.subscribe(["queued"], (signal) => heard.push(signal))).rejects.toThrow("away");
  deliver('{"kind":"queued"}');
  expect(heard).toEqual([]);
});
