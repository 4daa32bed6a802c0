/** Which ffmpeg encodes: the one the operator names, else the binary that npm brought. */
import { promisify } from "node:util";

import ffmpegInstaller from "@ffmpeg-installer/ffmpeg";
import ffmpeg from "fluent-ffmpeg";

import { settlesWithin } from "#queue/bounded.ts";

const ANSWER_TIMEOUT_MS = 10_000;

/**
 * Asks it what it can, so that a missing or broken ffmpeg stops the worker at its start and not at its first rollout.
 * (fluent-ffmpeg keeps the answers; without them each of the first encodings would ask by itself.)
 */
export async function findFfmpeg(configured: string | undefined): Promise<string> {
  const path = configured ?? ffmpegInstaller.path;
  const command = ffmpeg().setFfmpegPath(path);
  const formats = promisify(command.getAvailableFormats.bind(command))();
  const encoders = promisify(command.getAvailableEncoders.bind(command))();
  try {
    const answered = await settlesWithin(ANSWER_TIMEOUT_MS, Promise.all([formats, encoders]));
    if (!answered) throw new Error(`no answer within ${ANSWER_TIMEOUT_MS} ms`);
    if (!("libx264" in (await encoders))) throw new Error("it has no libx264 encoder");
  } catch (error) {
    throw new Error(`ffmpeg at ${path} (FFMPEG_PATH) cannot be used`, { cause: error });
  }
  return path;
}
