/** Peak signal-to-noise ratio (docs/quality.md). */

const LEVEL_MAX = 255;
/** What frames without any difference get, where the formula has infinity, and the most that any frame gets. */
export const PSNR_MAX_DB = 100;

/** dB of one frame over all its pixels and channels: `10·log10(255² / mean squared difference)`, at most 100. */
export function psnrOf(reference: Uint8Array, candidate: Uint8Array): number {
  let sum = 0; // at most 2^16 a byte: exact up to 2^37 bytes
  for (let i = 0; i < reference.length; i++) {
    const difference = (reference[i] ?? 0) - (candidate[i] ?? 0);
    sum += difference * difference;
  }
  return Math.min(PSNR_MAX_DB, 10 * Math.log10((LEVEL_MAX * LEVEL_MAX * reference.length) / sum));
}
