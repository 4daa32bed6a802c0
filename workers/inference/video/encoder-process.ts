/**
 * Entry of the encoder process: runs ffmpeg as its parent says, until the parent is gone. It does nothing but start
 * processes and tell how they ended (encoder.ts sends the orders, and has why it is a process).
 */
import { strict as assert } from "node:assert";
import { rmSync } from "node:fs";

import ffmpeg from "fluent-ffmpeg";

export interface FfmpegOrder {
  readonly ffmpegPath: string;
  /** ffmpeg's name of what it reads raw RGB frames from. */
  readonly input: string;
  /** Where the video goes; its folder exists. */
  readonly file: string;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  /** Nobody waits for this video: others on the machine, and videos that somebody waits for, have the processor first. */
  readonly yields: boolean;
}

export type ToEncoder =
  | { readonly kind: "encode"; readonly id: number; readonly order: FfmpegOrder }
  | { readonly kind: "kill"; readonly id: number };

/** Once for each order. `error`: why there is no video, null when there is. */
export interface FromEncoder {
  readonly id: number;
  readonly error: string | null;
}

/** Of an encoding that yields; a tenth of a normal one's share where both want the same core, all of it where nobody else does. */
const YIELDING_NICENESS = 10;

assert(process.connected, "this is the entry of a child process with an IPC channel");
/** Where the parent's sockets are. */
const [, , socketDir] = process.argv;
assert(socketDir);
const killers = new Map<number, () => void>();

async function encode(id: number, order: FfmpegOrder): Promise<void> {
  let error: string | null = null;
  try {
    await run(id, order);
  } catch (cause) {
    error = cause instanceof Error ? cause.message : String(cause);
  }
  killers.delete(id);
  process.send?.({ id, error } satisfies FromEncoder, undefined, undefined, () => undefined);
}

function run(id: number, { ffmpegPath, input, file, width, height, fps, yields }: FfmpegOrder): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let killed = false;
  const command = ffmpeg({ source: input, stdoutLines: 20, niceness: yields ? YIELDING_NICENESS : 0 })
    .setFfmpegPath(ffmpegPath)
    .inputFormat("rawvideo")
    .inputOptions(["-nostdin", "-pix_fmt rgb24", `-s ${width}x${height}`, `-r ${fps}`])
    .noAudio()
    .videoCodec("libx264")
    // One thread: several videos are encoded at once, and the engine needs its core.
    .outputOptions(["-preset veryfast", "-crf 18", "-pix_fmt yuv420p", "-movflags +faststart", "-threads 1", "-y"])
    .on("start", () => {
      if (killed) command.kill("SIGKILL");
    })
    .on("end", () => resolve())
    .on("error", (error) => reject(error));
  killers.set(id, () => {
    killed = true;
    command.kill("SIGKILL"); // without effect before it has started
  });
  command.save(file);
  return promise;
}

process.on("message", (message: ToEncoder) => {
  if (message.kind === "encode") void encode(message.id, message.order);
  else killers.get(message.id)?.();
});
// However the parent went: what it had begun is of no use, and it may not have had the time to clear up.
process.once("disconnect", () => {
  for (const kill of killers.values()) kill();
  rmSync(socketDir, { recursive: true, force: true });
  process.exit();
});
// Ctrl-C in a terminal reaches the whole process group; it is the parent who says when to stop.
for (const signal of ["SIGINT", "SIGHUP", "SIGTERM"] as const) process.on(signal, () => undefined);
