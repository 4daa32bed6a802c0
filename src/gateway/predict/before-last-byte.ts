/** A body whose last byte waits. */

/**
 * The chunks of `source` unchanged, with the very last byte held back until `ready` has resolved: whoever has the
 * whole body knows that it happened, and where the body could not be sent up to there, it does not happen.
 */
export async function* beforeLastByte(
  source: AsyncIterable<Uint8Array>,
  ready: () => Promise<void>,
): AsyncGenerator<Uint8Array> {
  let held: Uint8Array | undefined;
  for await (const chunk of source) {
    if (chunk.length === 0) continue;
    if (held) yield held;
    held = chunk;
  }
  if (!held) return;
  if (held.length > 1) yield held.subarray(0, -1);
  await ready();
  yield held.subarray(-1);
}
