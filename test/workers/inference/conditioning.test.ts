/** How much the prompts' caches keep. */
import { expect, test } from "vitest";

import { createPromptCache } from "#workers/inference/engine/conditioning.ts";
import { float32 } from "#workers/inference/engine/tensor.ts";

/** Tensors of so many bytes. */
const tensors = (bytes: number) => ({ text_kv: float32([bytes / 4], new Float32Array(bytes / 4)) });

const kept = (cache: ReturnType<typeof createPromptCache>, names: readonly (string | null)[]) =>
  names.filter((name) => cache.get(name) !== undefined);

test("the latest prompts are kept as far as their bytes allow, a used one is a late one", () => {
  const cache = createPromptCache(400);
  for (const prompt of ["a", "b", "c", "d"]) cache.put(prompt, tensors(100));
  cache.get("a");
  cache.put("e", tensors(100));
  expect(kept(cache, ["a", "b", "c", "d", "e"])).toEqual(["a", "c", "d", "e"]);
  cache.put("f", tensors(300));
  expect(kept(cache, ["a", "c", "d", "e", "f"])).toEqual(["e", "f"]);
});

test("what is put again or dropped counts no longer, and one too large for all of it is kept alone", () => {
  const cache = createPromptCache(400);
  for (let i = 0; i < 10; i++) cache.put("a", tensors(200));
  cache.put("b", tensors(200));
  expect(kept(cache, ["a", "b"])).toEqual(["a", "b"]);
  cache.put("huge", tensors(4000));
  expect(kept(cache, ["a", "b", "huge"])).toEqual(["huge"]);
  cache.put("c", tensors(200));
  cache.put("d", tensors(200));
  expect(kept(cache, ["huge", "c", "d"])).toEqual(["c", "d"]);
});

test("the empty prompt and the null sequence stay, and there are never more than 64 others", () => {
  const cache = createPromptCache(2 ** 20);
  for (const prompt of ["", null]) cache.put(prompt, tensors(4));
  for (let i = 0; i < 100; i++) cache.put(`p${i}`, tensors(4));
  expect(kept(cache, ["", null, "p0", "p35", "p36", "p99"])).toEqual(["", null, "p36", "p99"]);
});
