/** Which ffmpeg encodes: the one the operator names, else the binary that npm brought. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

const ANSWER_TIMEOUT_MS = 10_000;

/** Asks it for its encoders, so that a missing or broken ffmpeg stops a worker at its start, not at its first rollout. */
export async function findFfmpeg(configured: string | undefined): Promise<string> {
  const path = configured ?? (await pathFromNpm());
  try {
    const options = { timeout: ANSWER_TIMEOUT_MS, killSignal: "SIGKILL" } as const;
    const { stdout } = await promisify(execFile)(path, ["-hide_banner", "-encoders"], options);
    if (!stdout.includes("libx264")) throw new Error("it has no libx264 encoder");
  } catch (error) {
    throw new Error(`ffmpeg at ${path} (FFMPEG_PATH) cannot be used`, { cause: error });
  }
  return path;
}

/** Loaded here alone: the package fails to load where its binary is left out, as in the image, which has Debian's. */
async function pathFromNpm(): Promise<string> {
  const { default: ffmpegInstaller } = await import("@ffmpeg-installer/ffmpeg");
  return ffmpegInstaller.path;
}
