/** Decodes a video to its end. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);

const DECODE_TIMEOUT_MS = 60_000;
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024;

/** Frames that come out of a file; rejects when ffmpeg reports an error in it. */
export async function countFrames(ffmpegPath: string, file: string): Promise<number> {
  // framecrc prints one line per decoded frame, and lines with # before.
  const args = ["-v", "error", "-xerror", "-i", file, "-map", "0:v", "-f", "framecrc", "-"];
  const { stdout } = await run(ffmpegPath, args, { timeout: DECODE_TIMEOUT_MS, maxBuffer: OUTPUT_BYTES_MAX });
  return stdout.split("\n").filter((line) => line !== "" && !line.startsWith("#")).length;
}
