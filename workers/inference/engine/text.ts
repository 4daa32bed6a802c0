/** Byte-level tokens: 0 pads, 1 begins a prompt, 2 is the null sequence, a byte is itself + 3. */
const BEGIN = 1;
const NULL_SEQUENCE = 2;
const FIRST_BYTE = 3;

/** A prompt, or null for the unconditional pass. */
export type Prompt = string | null;

/** Token ids and mask (1 = token) of `maxTokens` places. Longer prompts are cut at `maxTokens − 1` bytes. */
export function tokenize(prompt: Prompt, maxTokens: number): { ids: BigInt64Array; mask: Float32Array } {
  const tokens =
    prompt === null
      ? [NULL_SEQUENCE]
      : [BEGIN, ...Array.from(new TextEncoder().encode(prompt), (byte) => byte + FIRST_BYTE)].slice(0, maxTokens);
  const ids = new BigInt64Array(maxTokens);
  const mask = new Float32Array(maxTokens);
  for (const [i, token] of tokens.entries()) {
    ids[i] = BigInt(token);
    mask[i] = 1;
  }
  return { ids, mask };
}
