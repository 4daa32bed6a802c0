/**
 * Turns the caller's start frame into what a model takes: RGB, 8 bits, exactly height × width.
 *
 * Decided: what every viewer shows is what the model sees, so an EXIF orientation is applied; transparency is
 * flattened onto black; colour profiles are ignored, as the tools that make training data do; another size is
 * stretched to the model's with Lanczos. A frame that already is RGB8 of the right size keeps its exact pixels.
 */
import sharp from "sharp";

import { ApiError } from "#contract/errors.ts";
import { createSlots } from "#platform/slots.ts";
import { FRAME_PIXELS_MAX } from "#contract/limits.ts";

/** Longest time one decode may take; 64 Mpx take about 3 s on a slow core. */
const DECODE_TIMEOUT_S = 20;
/** Decodes at once: each may hold 64 Mpx × 4 bytes, and libvips brings its own threads. */
const DECODES_AT_ONCE = 2;

export interface Frame {
  /** As stored: PNG, RGB8. */
  readonly png: Buffer;
  /** `[height, width, 3]`; what the fingerprint is taken of, because the same pixels compress in many ways. */
  readonly pixels: Buffer;
}

export type NormaliseFrame = (
  file: Buffer,
  size: { readonly height: number; readonly width: number },
  part: string,
) => Promise<Frame>;

/** Throws ApiError(invalid_input) on what is no still PNG or JPEG, or is too large; `part` names the form part. */
export function createFrameNormaliser(): NormaliseFrame {
  const decodes = createSlots(DECODES_AT_ONCE);
  return async (file, size, part) => {
    const giveBack = await decodes.take();
    try {
      return await normaliseFrame(file, size, part);
    } finally {
      giveBack();
    }
  };
}

async function normaliseFrame(
  file: Buffer,
  { height, width }: { height: number; width: number },
  part: string,
): Promise<Frame> {
  await checkFrameHeader(file, part);
  try {
    const pixels = await sharp(file, DECODING)
      .autoOrient()
      .flatten({ background: "#000000" })
      .toColourspace("srgb")
      .resize(width, height, { fit: "fill", kernel: "lanczos3" })
      .raw({ depth: "uchar" })
      .timeout({ seconds: DECODE_TIMEOUT_S })
      .toBuffer();
    const png = await sharp(pixels, { raw: { width, height, channels: 3 } })
      .png({ compressionLevel: 3 })
      .toBuffer();
    return { png, pixels };
  } catch (error) {
    throw unreadable(error, part);
  }
}

const DECODING = { limitInputPixels: FRAME_PIXELS_MAX, failOn: "truncated", ignoreIcc: true } as const;

/**
 * What can be told of a frame without decoding a pixel of it, so that a decompression bomb is refused here: that it is a
 * still PNG or JPEG, and how large. Throws ApiError(invalid_input).
 */
export async function checkFrameHeader(file: Buffer, part: string): Promise<void> {
  checkContainer(file, part);
  const { width, height } = await sharp(file, { ...DECODING, limitInputPixels: false })
    .metadata()
    .catch((error: unknown) => {
      throw unreadable(error, part);
    });
  if (width * height > FRAME_PIXELS_MAX) {
    throw new ApiError(
      "invalid_input",
      `${part}: expected at most ${FRAME_PIXELS_MAX / 1e6} Mpx, got ${width} × ${height}`,
    );
  }
}

/** sharp throws plain errors with libvips' text for everything that is wrong with a file. */
function unreadable(error: unknown, part: string): ApiError {
  const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
  return new ApiError(
    "invalid_input",
    `${part}: expected a readable PNG or JPEG image; it cannot be decoded (${reason})`,
    { cause: error },
  );
}

const PNG_SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const JPEG_SIGNATURE = Buffer.from([0xff, 0xd8, 0xff]);

/** By content, never by name or declared type. */
function checkContainer(file: Buffer, part: string): void {
  if (file.length === 0) throw new ApiError("invalid_input", `${part}: expected a PNG or JPEG image, got no bytes`);
  const isPng = file.subarray(0, 8).equals(PNG_SIGNATURE);
  if (!isPng && !file.subarray(0, 3).equals(JPEG_SIGNATURE)) {
    throw new ApiError(
      "invalid_input",
      `${part}: expected a PNG or JPEG image, got ${file.length} bytes of something else`,
    );
  }
  if (isPng && isAnimatedPng(file)) {
    throw new ApiError("invalid_input", `${part}: expected one still image, got an animated PNG`);
  }
}

/** An animated PNG has an `acTL` chunk before its first `IDAT` (APNG specification, "Structure"). */
function isAnimatedPng(file: Buffer): boolean {
  let at = PNG_SIGNATURE.length;
  while (at + 8 <= file.length) {
    const type = file.toString("latin1", at + 4, at + 8);
    if (type === "acTL") return true;
    if (type === "IDAT" || type === "IEND") return false;
    at += 12 + file.readUInt32BE(at); // length, type, data, CRC
  }
  return false;
}
