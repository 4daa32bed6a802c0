import { deflateSync, crc32 } from "node:zlib";

import sharp from "sharp";
import { describe, expect, test } from "vitest";

import { ApiError } from "#contract/errors.ts";
import { createFrameNormaliser } from "#inputs/frame.ts";

const normalise = createFrameNormaliser();
const SIZE = { height: 48, width: 64 };
const frameOf = (file: Buffer) => normalise(file, SIZE, "frame");

const noise = Buffer.from(
  Array.from({ length: SIZE.height * SIZE.width * 3 }, (_unused, i) => (i * 2_654_435_761) >>> 24),
);
const exact = sharp(noise, { raw: { ...SIZE, channels: 3 } });

async function refusalOf(file: Buffer): Promise<ApiError> {
  const error: unknown = await frameOf(file).then(
    () => new Error("the frame was accepted"),
    (reason: unknown) => reason,
  );
  if (error instanceof ApiError) return error;
  throw error;
}

const plain = (width: number, height: number, channels: 3 | 4 = 3) =>
  sharp({ create: { width, height, channels, background: { r: 200, g: 100, b: 50, alpha: 0.5 } } });

describe("accepted frames", () => {
  test("a frame that fits keeps its exact pixels, and is stored as PNG", async () => {
    const { pixels, png } = await frameOf(await exact.clone().png().toBuffer());
    expect(pixels.equals(noise)).toBe(true);
    expect((await sharp(png).raw().toBuffer()).equals(noise)).toBe(true);
    expect(await sharp(png).metadata()).toMatchObject({ format: "png", ...SIZE, channels: 3, depth: "uchar" });
  });

  test("equal pixels in different files are one frame", async () => {
    const small = await frameOf(await exact.clone().png({ compressionLevel: 9 }).toBuffer());
    const large = await frameOf(await exact.clone().png({ compressionLevel: 0, progressive: true }).toBuffer());
    expect(small.pixels.equals(large.pixels)).toBe(true);
    expect(small.png.equals(large.png)).toBe(true);
  });

  test.for([
    ["a large JPEG", plain(640, 480).jpeg()],
    ["one pixel", plain(1, 1).png()],
    ["a palette", plain(30, 30).png({ palette: true })],
    ["grey", plain(30, 20).greyscale().png()],
    ["CMYK", plain(30, 20).toColourspace("cmyk").jpeg()],
    ["an interlaced PNG", plain(300, 200).png({ progressive: true })],
  ] as const)("%s becomes RGB8 of the model's size", async ([, image]) => {
    const { pixels } = await frameOf(await image.clone().toBuffer());
    expect(pixels.length).toBe(SIZE.height * SIZE.width * 3);
  });

  test("sixteen bits are cut to their upper eight", async () => {
    const deep = Uint16Array.from(noise, (value) => value * 256 + 7);
    const file = await sharp(deep, { raw: { ...SIZE, channels: 3 } })
      .toColourspace("rgb16")
      .png()
      .toBuffer();
    expect((await frameOf(file)).pixels.equals(noise)).toBe(true);
  });

  test("transparency is flattened onto black", async () => {
    const { pixels } = await frameOf(await plain(64, 48, 4).png().toBuffer());
    expect([...pixels.subarray(0, 3)]).toEqual([100, 50, 25]);
  });

  test("an EXIF orientation is applied: what viewers show is what the model sees", async () => {
    // Red over blue, to be turned by 90 degrees clockwise: red ends up on the right.
    const stored = sharp(Buffer.from(Array.from({ length: 48 * 48 * 3 }, (_unused, i) => channel(i))), {
      raw: { width: 48, height: 48, channels: 3 },
    });
    const file = await stored.withMetadata({ orientation: 6 }).png().toBuffer();
    const { pixels } = await frameOf(file);
    const middle = 24 * SIZE.width * 3;
    expect([...pixels.subarray(middle + 3, middle + 6)]).toEqual([0, 0, 255]);
    expect([...pixels.subarray(middle + (SIZE.width - 2) * 3, middle + (SIZE.width - 1) * 3)]).toEqual([255, 0, 0]);
  });
});

describe("refusals", () => {
  test.for([
    ["no bytes", Buffer.alloc(0), /got no bytes/],
    ["text", Buffer.from("hello"), /got 5 bytes of something else/],
    ["a PNG signature alone", Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]), /cannot be decoded/],
    ["a JPEG signature alone", Buffer.from([0xff, 0xd8, 0xff, 0xe0]), /cannot be decoded/],
  ] as const)("refuses %s", async ([, file, message]) => {
    const refusal = await refusalOf(file);
    expect(refusal.code).toBe("invalid_input");
    expect(refusal.message).toMatch(/^frame: expected a .*PNG or JPEG/);
    expect(refusal.message).toMatch(message);
  });

  test.for(["gif", "webp", "tiff"] as const)("refuses %s, whatever libvips could read", async (format) => {
    expect((await refusalOf(await plain(8, 8).toFormat(format).toBuffer())).message).toMatch(/something else/);
  });

  test("refuses SVG, which could name other files", async () => {
    const svg = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>');
    expect((await refusalOf(svg)).message).toMatch(/something else/);
  });

  test("refuses truncated images", async () => {
    const png = await exact.clone().png().toBuffer();
    const jpeg = await exact.clone().jpeg().toBuffer();
    for (const file of [png.subarray(0, png.length / 2), jpeg.subarray(0, jpeg.length / 2)]) {
      expect((await refusalOf(file)).message).toMatch(/cannot be decoded/);
    }
  });

  test("refuses an animated PNG", async () => {
    expect((await refusalOf(pngOf(8, 8, [chunk("acTL", Buffer.from([0, 0, 0, 2, 0, 0, 0, 0]))]))).message).toMatch(
      /one still image, got an animated PNG/,
    );
  });

  test("refuses a decompression bomb by its header, without decoding it", async () => {
    const started = performance.now();
    const refusal = await refusalOf(pngOf(60_000, 60_000, []));
    expect(refusal.message).toMatch(/at most 64 Mpx, got 60000 × 60000/);
    expect(performance.now() - started).toBeLessThan(2_000);
  });
});

const channel = (i: number): number => {
  const upper = i < 48 * 24 * 3;
  return i % 3 === (upper ? 0 : 2) ? 255 : 0;
};

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const check = Buffer.alloc(4);
  check.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, check]);
}

/** A grey PNG whose header promises that size; its data is one short run of zeros. */
function pngOf(width: number, height: number, extra: readonly Buffer[]): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.writeUInt8(8, 8);
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", header),
    ...extra,
    chunk("IDAT", deflateSync(Buffer.alloc(1024))),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}
