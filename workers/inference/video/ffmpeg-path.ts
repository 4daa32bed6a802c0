/** Which ffmpeg encodes: the one the operator names, else the binary that npm brought. */
import { spawn } from "node:child_process";
import { once } from "node:events";

import ffmpegInstaller from "@ffmpeg-installer/ffmpeg";

import { settlesWithin } from "#queue/bounded.ts";

const ANSWER_TIMEOUT_MS = 10_000;

/** Runs it once, so that a missing or broken ffmpeg stops the worker at its start and not its first rollout. */
export async function findFfmpeg(configured: string | undefined): Promise<string> {
  const path = configured ?? ffmpegInstaller.path;
  const problem = await problemWith(path);
  if (problem !== null) throw new Error(`ffmpeg at ${path} (FFMPEG_PATH) cannot be used: ${problem}`);
  return path;
}

async function problemWith(path: string): Promise<string | null> {
  const child = spawn(path, ["-hide_banner", "-encoders"], { stdio: ["ignore", "pipe", "ignore"] });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
  const closed = once(child, "close");
  try {
    if (!(await settlesWithin(ANSWER_TIMEOUT_MS, closed))) return `no answer within ${ANSWER_TIMEOUT_MS} ms`;
    await closed;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    child.kill("SIGKILL");
  }
  return output.includes("libx264") ? null : "it has no libx264 encoder";
}
