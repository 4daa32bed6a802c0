/**
 * A contact sheet: frames of videos side by side in one PNG, so that one look tells what was dreamed. Decoded by ffmpeg,
 * tiled by sharp.
 */
import { execFile } from "node:child_process";
import { rename, rm } from "node:fs/promises";
import { promisify } from "node:util";

import sharp, { type OverlayOptions } from "sharp";

import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

const run = promisify(execFile);

export interface SheetRow {
  readonly label: string;
  /** A file, decoded to its end. */
  readonly video: string;
  readonly frames: number;
}

const TILE_PX = 128;
const GAP_PX = 4;
const LABEL_PX = 18;
const BACKGROUND = { r: 24, g: 26, b: 30 };
const TEXT_COLOUR = "#d8dde6";
/** Frames of each video: the first, the last and what is evenly between. */
const COLUMNS = 8;
const DECODE_TIMEOUT_MS = 60_000;

/** A row of frames for each video, its label above it. */
export async function contactSheet(
  ffmpegPath: string | undefined,
  rows: readonly SheetRow[],
  file: string,
): Promise<void> {
  const ffmpeg = await findFfmpeg(ffmpegPath);
  const columns = Math.min(COLUMNS, Math.max(1, ...rows.map(({ frames }) => frames)));
  const rowPx = LABEL_PX + TILE_PX + GAP_PX;
  const overlays: OverlayOptions[] = [];
  for (const [index, row] of rows.entries()) {
    const top = GAP_PX + index * rowPx;
    const picked = spread(row.frames, columns);
    const tiles = await framesOf(ffmpeg, row.video, picked);
    overlays.push(
      ...(await label(`${row.label} · frames ${picked.join(", ")}`, GAP_PX, top, columns * (TILE_PX + GAP_PX))),
    );
    for (const [column, tile] of tiles.entries()) {
      overlays.push({
        input: tile,
        raw: { width: TILE_PX, height: TILE_PX, channels: 3 },
        left: GAP_PX + column * (TILE_PX + GAP_PX),
        top: top + LABEL_PX,
      });
    }
  }
  const width = GAP_PX + columns * (TILE_PX + GAP_PX);
  const height = GAP_PX + rows.length * rowPx;
  const draft = `${file}.${process.pid}.part`;
  try {
    await sharp({ create: { width, height, channels: 3, background: BACKGROUND } })
      .composite(overlays)
      .removeAlpha() // the labels bring it in
      .png()
      .toFile(draft);
    await rename(draft, file);
  } finally {
    await rm(draft, { force: true });
  }
}

/** Of one video. */
export async function frameSheet(
  ffmpegPath: string | undefined,
  video: string,
  frames: number,
  file: string,
): Promise<void> {
  await contactSheet(ffmpegPath, [{ label: video, video, frames }], file);
}

/** `count` of the numbers 0 … total − 1, first and last among them. */
export function spread(total: number, count: number): number[] {
  if (total <= count) return Array.from({ length: total }, (_unused, index) => index);
  if (count === 1) return [0];
  return Array.from({ length: count }, (_unused, index) => Math.round((index * (total - 1)) / (count - 1)));
}

/** RGB tiles; fewer than asked for where the video has fewer frames. */
async function framesOf(ffmpeg: string, video: string, picked: readonly number[]): Promise<Buffer[]> {
  const select = picked.map((frame) => `eq(n\\,${frame})`).join("+");
  const scale = `scale=${TILE_PX}:${TILE_PX}:force_original_aspect_ratio=decrease`;
  const pad = `pad=${TILE_PX}:${TILE_PX}:(ow-iw)/2:(oh-ih)/2`;
  // Consecutive times, so that no version of ffmpeg repeats a frame to fill the gaps.
  const filter = `select=${select},setpts=N/FRAME_RATE/TB,${scale},${pad}`;
  const output = ["-map", "0:v", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
  const frameBytes = TILE_PX * TILE_PX * 3;
  // As mp4, whatever is in it: of other formats some name further files and addresses to read.
  const { stdout } = await run(ffmpeg, ["-v", "error", "-f", "mp4", "-i", video, "-vf", filter, ...output], {
    encoding: "buffer",
    timeout: DECODE_TIMEOUT_MS,
    maxBuffer: frameBytes * (picked.length + 1),
  });
  return picked
    .map((_frame, index) => stdout.subarray(index * frameBytes, (index + 1) * frameBytes))
    .filter(({ length }) => length === frameBytes);
}

async function label(text: string, left: number, top: number, widthMax: number): Promise<OverlayOptions[]> {
  const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const { data, info } = await sharp({
    text: { text: `<span foreground="${TEXT_COLOUR}">${escaped}</span>`, font: "sans 10", dpi: 84, rgba: true },
  })
    .png()
    .toBuffer({ resolveWithObject: true });
  const input = await sharp(data)
    .extract({ left: 0, top: 0, width: Math.min(info.width, widthMax), height: Math.min(info.height, LABEL_PX) })
    .png()
    .toBuffer();
  return [{ input, left, top: top + 1 }];
}
