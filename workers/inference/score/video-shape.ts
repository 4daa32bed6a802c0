/** Frames one after the other, RGB, a byte a channel: what the three metrics compare. */

export interface VideoShape {
  readonly frames: number;
  readonly height: number;
  readonly width: number;
}

/** Two videos that cannot be compared; the message says what was expected. */
export class VideoShapeError extends Error {
  override readonly name = "VideoShapeError";
}

const frameBytesOf = ({ height, width }: VideoShape): number => height * width * 3;

/** Frames `start` to `end` (not included) of a video, as a view. */
export const framesOf = (video: Uint8Array, shape: VideoShape, start: number, end: number): Uint8Array =>
  video.subarray(start * frameBytesOf(shape), end * frameBytesOf(shape));

/** Throws VideoShapeError unless both videos have exactly this shape and frames of at least `sideMin` pixels a side. */
export function checkVideos(reference: Uint8Array, candidate: Uint8Array, shape: VideoShape, sideMin: number): void {
  const { frames, height, width } = shape;
  if (![frames, height, width].every((count) => Number.isSafeInteger(count) && count > 0)) {
    throw new VideoShapeError(`expected whole numbers above 0, got ${frames} frames of ${height} × ${width}`);
  }
  if (height < sideMin || width < sideMin) {
    throw new VideoShapeError(`frames of ${height} × ${width}, expected at least ${sideMin} pixels a side`);
  }
  const expected = frames * frameBytesOf(shape);
  for (const [name, video] of Object.entries({ reference, candidate })) {
    if (video.length === expected) continue;
    throw new VideoShapeError(
      `the ${name} has ${video.length} bytes, expected ${expected}: ${frames} frames of ${height} × ${width} in RGB`,
    );
  }
}
