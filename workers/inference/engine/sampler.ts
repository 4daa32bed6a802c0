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
  const moved = new Float32Array(x.length);
  // Writing to it rounds to float32.
  for (let i = 0; i < moved.length; i++) moved[i] = (x[i] ?? 0) + Math.fround(dt * (velocity[i] ?? Number.NaN));
  return moved;
}

/** Guidance as this field counts it, `cond + g·(cond − uncond)`: g = 0 is the conditional prediction alone. */
export function guide(cond: Float32Array, uncond: Float32Array, guidance: number): Float32Array {
  const g = Math.fround(guidance);
  const guided = new Float32Array(cond.length);
  for (let i = 0; i < guided.length; i++) {
    const value = cond[i] ?? 0;
    guided[i] = value + Math.fround(g * Math.fround(value - (uncond[i] ?? Number.NaN)));
  }
  return guided;
}
