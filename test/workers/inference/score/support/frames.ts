/** Frames that are the same on every run. */
import { chunkNoise } from "#workers/inference/engine/philox.ts";

/** Normal numbers, by the engine's own counter-based generator. */
const normals = (seed: number, count: number): Float32Array => chunkNoise(BigInt(seed), 0, count);

/** `frame` with noise of `sigma` levels, rounded and clamped. */
export function withNoise(frame: Uint8Array, sigma: number, seed: number): Uint8Array {
  const noise = normals(seed, frame.length);
  return frame.map((level, i) => Math.min(255, Math.max(0, Math.round(level + sigma * (noise[i] ?? 0)))));
}

/** Smooth colours with noise on them. */
export function texture(height: number, width: number, seed: number): Uint8Array {
  const waves = Uint8Array.from({ length: height * width * 3 }, (_, i) => {
    const [y, x] = [Math.floor(i / 3 / width), Math.floor(i / 3) % width];
    return 128 + 50 * Math.sin(x / 9 + seed + (i % 3)) + 50 * Math.cos(y / 7 - seed);
  });
  return withNoise(waves, 12, seed);
}

/** Frames one after the other. */
export function concat(frames: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(frames));
}
