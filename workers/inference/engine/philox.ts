/**
 * The noise of a rollout: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) and
 * Box–Muller, exactly as docs/model-bundle.md writes them down. Counter-based, so that any chunk's noise can be made
 * without the ones before it, and the Python reference makes the same.
 */
const ROUNDS = 10;
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
/** Golden ratio and √3 − 1 as 32-bit fractions: what the key is bumped by between rounds. */
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;

const TWO_TO_MINUS_32 = 2 ** -32;

export type Words4 = readonly [number, number, number, number];

/** Upper 32 bits of a 32 × 32 bit product. Every partial product below stays under 2^53, so doubles are exact. */
function multiplyHigh(a: number, b: number): number {
  const aHigh = a >>> 16;
  const aLow = a & 0xffff;
  const bHigh = b >>> 16;
  const bLow = b & 0xffff;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const middleLow = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (middleLow >>> 16)) >>> 0;
}

/** One block of four random 32-bit words. */
export function philox4x32(counter: Words4, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0) >>> 0;
    const high1 = multiplyHigh(MULTIPLIER_1, c2);
    const low1 = Math.imul(MULTIPLIER_1, c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** Any integer seed, modulo 2^64, as the key (low word, high word). */
export function keyOfSeed(seed: bigint): readonly [number, number] {
  const bits = BigInt.asUintN(64, seed);
  return [Number(bits & 0xffff_ffffn), Number(bits >> 32n)];
}

/** The first `count` standard normals of one chunk's noise tensor, row-major. */
export function chunkNoise(seed: bigint, chunk: number, count: number): Float32Array {
  const key = keyOfSeed(seed);
  const noise = new Float32Array(count);
  for (let group = 0; group * 4 < count; group++) {
    const [r0, r1, r2, r3] = philox4x32([group, 0, chunk, 0], key);
    // Writing past the end of a typed array does nothing: that drops what an incomplete last group does not need.
    [noise[group * 4], noise[group * 4 + 1]] = boxMuller(r0, r1);
    [noise[group * 4 + 2], noise[group * 4 + 3]] = boxMuller(r2, r3);
  }
  return noise;
}

/** Two words to two normals, in float64; the caller's Float32Array rounds once. */
function boxMuller(first: number, second: number): [number, number] {
  const radius = Math.sqrt(-2 * Math.log((first + 1) * TWO_TO_MINUS_32));
  const angle = 2 * Math.PI * (second * TWO_TO_MINUS_32);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}
