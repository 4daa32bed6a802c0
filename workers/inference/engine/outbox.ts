/**
 * What the loop tells the main thread. The samples of a forward get their frames as views of one buffer, the decoder's
 * own output; a buffer can be transferred once, and all views of it have to go along. So the events of a forward are collected
 * and go out in one message, once the loop gives way. Small frames wait there for the next ones: a message, a write and a
 * wakeup of ffmpeg for each would cost a small model more than its encoding does.
 */
import type { EngineEvent } from "./loop.ts";

type FramesEvent = Extract<EngineEvent, { type: "frames" }>;
type EndEvent = Exclude<EngineEvent, FramesEvent>;

/** Events as they travel. A rollout's frames come before its end. */
export type EngineNews =
  | (Omit<FramesEvent, "frames"> & { /** Whole frames, in order. */ readonly pieces: readonly Uint8Array[] })
  | EndEvent;

export type Post = (news: readonly EngineNews[], transfer: readonly ArrayBuffer[]) => void;

/** Held of one candidate at most: half a dozen frames of 96 × 96, none of 640 × 480. */
const HELD_BYTES_MAX = 160 * 1024;

export interface Outbox {
  /** Goes out before the next forward, or, if it is small frames, with what comes later. */
  readonly emit: (event: EngineEvent) => void;
  /** Sends what is held; to be called when nothing else will come for now. */
  readonly flush: () => void;
}

export function createOutbox(post: Post): Outbox {
  let frames = new Map<string, Omit<FramesEvent, "frames"> & { readonly pieces: Uint8Array[] }>();
  let ends: EndEvent[] = [];
  let sending = false;

  function send(): void {
    sending = false;
    if (frames.size + ends.length === 0) return;
    // The graphs' outputs are never shared memory.
    const buffers = [...frames.values()].flatMap(({ pieces }) => pieces.map(({ buffer }) => buffer as ArrayBuffer));
    post([...frames.values(), ...ends], [...new Set(buffers)]);
    frames = new Map();
    ends = [];
  }

  /** The bytes that are held of this candidate now. */
  function hold({ type, id, candidate, frames: piece }: FramesEvent): number {
    const key = `${id} ${candidate}`;
    const held = frames.get(key) ?? { type, id, candidate, pieces: [] };
    frames.set(key, held);
    held.pieces.push(piece);
    return held.pieces.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  return {
    emit(event) {
      if (event.type !== "frames") ends.push(event);
      else if (hold(event) < HELD_BYTES_MAX) return;
      if (sending) return;
      sending = true;
      queueMicrotask(send); // the other samples of this forward have given their views then
    },
    flush: send,
  };
}
