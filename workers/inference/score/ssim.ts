/**
 * Structural similarity of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
 * structural similarity", IEEE TIP 13(4), 2004, as scikit-image computes it with `gaussian_weights=True, sigma=1.5,
 * use_sample_covariance=False, data_range=255, channel_axis=-1`: on each of R, G and B, over the places where the whole
 * window lies inside the frame, and the mean of all (docs/quality.md).
 */
import { strict as assert } from "node:assert";

const CHANNELS = 3;
const SIGMA = 1.5;
const RADIUS = 5;
/** Side of the Gaussian window, and so the smallest frame. */
export const SSIM_SIDE_MIN = 2 * RADIUS + 1;
/** (K1·L)² and (K2·L)² with K1 = .01, K2 = .03, L = 255. */
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

/** exp(−k² / 2σ²) for k = 0 … 5, divided by the sum over −5 … 5: a half of the symmetric window, the centre first. */
const HALF_WINDOW = halfWindow();

function halfWindow(): readonly number[] {
  const weights = Array.from({ length: RADIUS + 1 }, (_, k) => Math.exp(-(k * k) / (2 * SIGMA * SIGMA)));
  const sum = weights.reduce((total, weight, k) => total + (k === 0 ? weight : 2 * weight), 0);
  return weights.map((weight) => weight / sum);
}

/**
 * −1 … 1 of one frame, 1 for identical ones; symmetric. The window is separable: for each row of places first the
 * columns, into four rows of local means (of x, y, x² + y² and x·y: the formula needs the variances' sum alone), then
 * along them.
 */
export function ssimOf(reference: Uint8Array, candidate: Uint8Array, height: number, width: number): number {
  assert(
    height >= SSIM_SIDE_MIN && width >= SSIM_SIDE_MIN,
    `frames of ${height} × ${width} are smaller than the window`,
  );
  const stride = width * CHANNELS;
  const columns = columnsOf(stride);
  let sum = 0;
  for (let row = RADIUS; row < height - RADIUS; row++) {
    weighColumns(reference, candidate, row * stride, stride, columns);
    sum += weighRow(columns, stride);
  }
  return sum / ((height - 2 * RADIUS) * (width - 2 * RADIUS) * CHANNELS);
}

interface Columns {
  readonly x: Float64Array;
  readonly y: Float64Array;
  readonly squares: Float64Array;
  readonly product: Float64Array;
}

const columnsOf = (length: number): Columns => ({
  x: new Float64Array(length),
  y: new Float64Array(length),
  squares: new Float64Array(length),
  product: new Float64Array(length),
});

/** Here and below, one declaration a line: destructuring in the loops over pixels made them three times slower. */
function weighColumns(a: Uint8Array, b: Uint8Array, start: number, stride: number, into: Columns): void {
  const { x, y, squares, product } = into;
  const centre = HALF_WINDOW[0] ?? 0;
  for (let i = 0; i < stride; i++) {
    const at = start + i;
    const p = a[at] ?? 0;
    const q = b[at] ?? 0;
    let meanX = centre * p;
    let meanY = centre * q;
    let meanSquares = centre * (p * p + q * q);
    let meanProduct = centre * (p * q);
    for (let k = 1; k <= RADIUS; k++) {
      const weight = HALF_WINDOW[k] ?? 0;
      const above = at - k * stride;
      const below = at + k * stride;
      const p0 = a[above] ?? 0;
      const q0 = b[above] ?? 0;
      const p1 = a[below] ?? 0;
      const q1 = b[below] ?? 0;
      meanX += weight * (p0 + p1);
      meanY += weight * (q0 + q1);
      meanSquares += weight * (p0 * p0 + p1 * p1 + q0 * q0 + q1 * q1);
      meanProduct += weight * (p0 * q0 + p1 * q1);
    }
    x[i] = meanX;
    y[i] = meanY;
    squares[i] = meanSquares;
    product[i] = meanProduct;
  }
}

/** The sum of the index over a row of places. */
function weighRow({ x, y, squares, product }: Columns, stride: number): number {
  const centre = HALF_WINDOW[0] ?? 0;
  let sum = 0;
  for (let i = RADIUS * CHANNELS; i < stride - RADIUS * CHANNELS; i++) {
    let meanX = centre * (x[i] ?? 0);
    let meanY = centre * (y[i] ?? 0);
    let meanSquares = centre * (squares[i] ?? 0);
    let meanProduct = centre * (product[i] ?? 0);
    for (let k = 1; k <= RADIUS; k++) {
      const weight = HALF_WINDOW[k] ?? 0;
      const left = i - k * CHANNELS;
      const right = i + k * CHANNELS;
      meanX += weight * ((x[left] ?? 0) + (x[right] ?? 0));
      meanY += weight * ((y[left] ?? 0) + (y[right] ?? 0));
      meanSquares += weight * ((squares[left] ?? 0) + (squares[right] ?? 0));
      meanProduct += weight * ((product[left] ?? 0) + (product[right] ?? 0));
    }
    const crossMeans = meanX * meanY;
    const squaredMeans = meanX * meanX + meanY * meanY;
    const covariance = meanProduct - crossMeans;
    const variances = meanSquares - squaredMeans;
    sum += ((2 * crossMeans + C1) * (2 * covariance + C2)) / ((squaredMeans + C1) * (variances + C2));
  }
  return sum;
}
