/** Pairs of frames and what independent implementations say of them (models/lpips/golden.py made both). */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import sharp from "sharp";

import type { VideoShape } from "#workers/inference/score/video-shape.ts";

const DIR = "test/golden/score";

interface GoldenPair {
  readonly name: string;
  readonly height: number;
  readonly width: number;
  /** Each pixel of the PNG stands for scale × scale pixels. */
  readonly scale: number;
  readonly psnr: number;
  readonly ssim: number;
  readonly lpips: number;
}

export const golden = JSON.parse(readFileSync(join(DIR, "golden.json"), "utf8")) as {
  readonly tolerance: { readonly psnr_db: number; readonly ssim: number; readonly lpips: number };
  readonly pairs: readonly GoldenPair[];
};

export interface FramePair {
  readonly reference: Uint8Array;
  readonly candidate: Uint8Array;
  /** Of one frame. */
  readonly shape: VideoShape;
}

export async function readPair({ name, height, width, scale }: GoldenPair): Promise<FramePair> {
  const { data, info } = await sharp(join(DIR, `${name}.png`))
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  if (info.height !== 2 * height || info.width !== width) throw new Error(`${name}.png has another size`);
  const size = height * width * 3;
  const frame = (index: number) => enlarge(data.subarray(index * size, (index + 1) * size), height, width, scale);
  return {
    reference: frame(0),
    candidate: frame(1),
    shape: { frames: 1, height: height * scale, width: width * scale },
  };
}

export function pairNamed(name: string): Promise<FramePair> {
  const pair = golden.pairs.find((pair) => pair.name === name);
  if (!pair) throw new Error(`no golden pair ${name}`);
  return readPair(pair);
}

function enlarge(pixels: Uint8Array, height: number, width: number, scale: number): Uint8Array {
  const large = new Uint8Array(height * width * scale * scale * 3);
  for (let y = 0; y < height * scale; y++) {
    for (let x = 0; x < width * scale; x++) {
      const from = (Math.floor(y / scale) * width + Math.floor(x / scale)) * 3;
      large.set(pixels.subarray(from, from + 3), (y * width * scale + x) * 3);
    }
  }
  return large;
}
