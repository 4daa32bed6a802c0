/**
 * Hints between processes: something happened, look at the truth. Lossy by design: a lost signal costs latency,
 * never correctness, because everyone who waits also polls. Ids only, so that PostgreSQL's NOTIFY (8 kB) can carry them.
 */
import { Type, type Static } from "typebox";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { parserOf } from "./parse.ts";

const RolloutIdText = Type.String({ maxLength: 100 });

/** `queued`: the scheduler has work; `dataset`: the runners have. Others name one rollout. `progress` carries frames done as well. */
const Signal = Type.Union([
  Type.Object({ kind: Type.Literal("queued") }),
  Type.Object({ kind: Type.Literal("dataset") }),
  Type.Object({ kind: Type.Literal("cancel"), rollout_id: RolloutIdText }),
  Type.Object({ kind: Type.Literal("finished"), rollout_id: RolloutIdText }),
  Type.Object({
    kind: Type.Literal("progress"),
    rollout_id: RolloutIdText,
    frames: Type.Integer({ minimum: 0 }),
  }),
]);
export type Signal = Static<typeof Signal>;
export type SignalKind = Signal["kind"];

export interface Signals {
  /** Never rejects; a failed publish is logged. */
  publish(signal: Signal): Promise<void>;
  /** Resolves when the subscription is in force; returns its end. Survives a lost connection. */
  subscribe(kinds: readonly SignalKind[], handler: (signal: Signal) => void): Promise<() => Promise<void>>;
}

/** What a backend brings. One channel a kind, so that workers do not hear every other worker's progress. */
export interface SignalTransport {
  send(kind: SignalKind, message: string): Promise<void>;
  /** Resolves when messages of this kind reach `receive`, and keeps that true over reconnects until the end. Idempotent. */
  listen(kind: SignalKind): Promise<void>;
  close(): Promise<void>;
}

const parseSignal = parserOf(Signal);

/** `connect` is given the function that takes incoming messages. */
export function createSignals(
  connect: (receive: (message: string) => void) => SignalTransport,
  log: Log,
): Signals & Service {
  const handlers = new Map<SignalKind, Set<(signal: Signal) => void>>();

  function receive(message: string): void {
    let received: Signal;
    try {
      received = parseSignal(JSON.parse(message));
    } catch (error) {
      log.warn({ err: error }, "ignored a signal that does not parse");
      return;
    }
    for (const handler of handlers.get(received.kind) ?? []) {
      try {
        handler(received);
      } catch (error) {
        log.error({ err: error, signal: received }, "signal handler threw");
      }
    }
  }
  const transport = connect(receive);

  return {
    async publish(outgoing) {
      try {
        await transport.send(outgoing.kind, JSON.stringify(outgoing));
      } catch (error) {
        log.warn({ err: error, signal: outgoing }, "could not publish a signal");
      }
    },
    async subscribe(kinds, handler) {
      // One function may be subscribed twice; each subscription has its own identity and end.
      const own = (received: Signal): void => handler(received);
      for (const kind of kinds) {
        const set = handlers.get(kind) ?? new Set();
        handlers.set(kind, set.add(own));
      }
      const end = async (): Promise<void> => {
        for (const kind of kinds) handlers.get(kind)?.delete(own);
      };
      try {
        await Promise.all(kinds.map((kind) => transport.listen(kind)));
      } catch (error) {
        await end();
        throw error;
      }
      return end;
    },
    stop: () => transport.close(),
  };
}
