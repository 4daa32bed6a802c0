/**
 * One video, encoded while its frames are still being dreamed: raw RGB goes to ffmpeg block by block, an
 * H.264 file comes out. ffmpeg ends with 0 also when its input was cut short, so the frames are counted here.
 */
import { strict as assert } from "node:assert";
import { PassThrough } from "node:stream";

import { settlesWithin } from "#platform/bounded.ts";
import type { Slots } from "#platform/slots.ts";

import type { Encoder } from "./encoder.ts";

/** After the last frame: the longest rollout at 640×480 takes ffmpeg some 4 s on one free core. */
const FINISH_TIMEOUT_MS = 60_000;
/** From SIGKILL to the process's end. */
const KILL_TIMEOUT_MS = 5_000;

export class VideoError extends Error {
  override readonly name = "VideoError";
}

export interface VideoOptions {
  readonly encoder: Encoder;
  /** Where the file goes; its folder exists. */
  readonly file: string;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  /** Exactly as many are expected. */
  readonly frames: number;
  /** Processes that may run at once. */
  readonly slots: Slots;
  /** Nobody waits for this video: others on the machine, and videos that somebody waits for, have the processor first. */
  readonly yields?: boolean;
}

export interface VideoEncoding {
  /**
   * Takes one or more whole frames, `height × width × 3` bytes each. Resolves when ffmpeg has them, or will take no
   * more; whoever writes on without waiting has them kept in memory. Never rejects.
   */
  write(frames: Uint8Array): Promise<void>;
  /** After the last frame: resolves when the file is complete. Rejects VideoError; then there is no file to use. */
  finish(): Promise<void>;
  /** Ends ffmpeg; resolves when it is gone. Harmless after `finish`. */
  abort(): Promise<void>;
  /** Resolves when ffmpeg ended before it should have, which the caller may want to know early. */
  readonly failed: Promise<VideoError>;
}

export function startEncoding(options: VideoOptions): VideoEncoding {
  const { encoder, file, width, height, fps, frames: framesExpected, slots, yields = false } = options;
  const frameBytes = width * height * 3;
  const bytesExpected = framesExpected * frameBytes;
  const input = new PassThrough();
  const aborting = new AbortController();
  const failed = Promise.withResolvers<VideoError>();
  let bytesWritten = 0;
  let hasSlot = false;

  async function encode(): Promise<void> {
    const giveBack = await slots.take();
    hasSlot = true;
    try {
      const order = { file, width, height, fps, yields };
      if (!aborting.signal.aborted) await encoder.encode(order, input, aborting.signal);
    } catch (error) {
      const failure = new VideoError("ffmpeg could not encode the video", { cause: error });
      failed.resolve(failure);
      throw failure;
    } finally {
      giveBack();
      input.destroy();
    }
  }
  const encoded = encode();
  // `finish` and `failed` tell how it ended; this only tells that it did.
  const ended = encoded.catch(() => undefined);

  async function abort(): Promise<void> {
    aborting.abort();
    // Without a slot there is no process yet, and there will be none.
    if (hasSlot) await settlesWithin(KILL_TIMEOUT_MS, ended);
  }

  return {
    failed: failed.promise,

    write(frames) {
      bytesWritten += frames.byteLength;
      assert(bytesWritten <= bytesExpected, "more frames than the video has");
      if (input.destroyed) return Promise.resolve();
      return new Promise((resolve) => {
        input.write(frames, () => resolve());
        // Its last frame ends ffmpeg, which gives its slot back while the engine goes on: of a rollout that goes
        // through in waves, the later ones wait for these slots.
        if (bytesWritten === bytesExpected) input.end();
        void ended.then(resolve);
      });
    },

    async finish() {
      if (bytesWritten !== bytesExpected) {
        await abort();
        throw new VideoError(`the video has ${bytesWritten / frameBytes} frames, expected ${framesExpected}`);
      }
      if (!(await settlesWithin(FINISH_TIMEOUT_MS, encoded))) {
        await abort();
        throw new VideoError(`ffmpeg did not finish the video within ${FINISH_TIMEOUT_MS} ms`);
      }
      await encoded;
    },

    abort,
  };
}
