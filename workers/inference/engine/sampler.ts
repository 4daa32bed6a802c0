/** Rectified flow by Euler in float32, step for step what the Python reference computes (docs/model-bundle.md). */

/** t_0 = 1 … t_n = 0 for `n` steps, `n + 1` values: `s·u / (1 + (s − 1)·u)` with `u = 1 − i/n`. */
export function schedule(numSteps: number, shift: number): Float32Array {
  return Float32Array.from({ length: numSteps + 1 }, (_, i) => {
    const u = 1 - i / numSteps;
    return (shift * u) / (1 + (shift - 1) * u);
  });
}

/** `x + (t_after − t_now)·velocity`, as a new array. */
export function eulerStep(x: Float32Array, velocity: Float32Array, tNow: number, tAfter: number): Float32Array {
  const dt = Math.fround(tAfter - tNow);
  return x.map((value, i) => Math.fround(value + Math.fround(dt * (velocity[i] ?? Number.NaN))));
}

/** Guidance as this field counts it, `cond + g·(cond − uncond)`: g = 0 is the conditional prediction alone. */
export function guide(cond: Float32Array, uncond: Float32Array, guidance: number): Float32Array {
  const g = Math.fround(guidance);
  return cond.map((value, i) => Math.fround(value + Math.fround(g * Math.fround(value - (uncond[i] ?? Number.NaN)))));
}
