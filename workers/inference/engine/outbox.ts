/**
 * What the loop tells the main thread. The samples of a forward get their frames as views of one buffer, the decoder's
 * own output; a buffer can be transferred once, and all views of it have to go along. So the events of a forward are collected
 * and go out in one message, as soon as the loop gives way, which is before its next forward.
 */
import type { EngineEvent } from "./loop.ts";

export type Post = (events: readonly EngineEvent[], transfer: readonly ArrayBuffer[]) => void;

export function createOutbox(post: Post): (event: EngineEvent) => void {
  let events: EngineEvent[] = [];

  function send(): void {
    const buffers = new Set<ArrayBuffer>();
    // The graphs' outputs are never shared memory.
    for (const event of events) if (event.type === "frames") buffers.add(event.frames.buffer as ArrayBuffer);
    post(events, [...buffers]);
    events = [];
  }

  return (event) => {
    if (events.length === 0) queueMicrotask(send);
    events.push(event);
  };
}
