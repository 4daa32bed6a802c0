/**
 * Execution providers. The npm package has the CPU's; those of NVIDIA devices are libraries that have to be put beside
 * it (docs/gpu.md). ONNX Runtime only says that it failed to load one, so it is looked for first.
 */
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const PREFIX = "libonnxruntime_providers_";

/** ORT_PROVIDERS names one that is not installed. */
export class ProviderMissing extends Error {
  override readonly name = "ProviderMissing";
}

/** Whether the graphs run on a device with memory of its own. */
export const isOnDevice = (providers: readonly string[]): boolean => providers.some((provider) => provider !== "cpu");

/** Throws ProviderMissing, which names those that there are. `folders`: where ONNX Runtime's libraries are. */
export function checkProviders(providers: readonly string[], folders: readonly string[] = libraryFolders()): void {
  const available = availableIn(folders);
  const missing = providers.filter((provider) => !available.includes(provider));
  if (missing.length === 0) return;
  throw new ProviderMissing(
    `ORT_PROVIDERS: ${missing.join(", ")} ${missing.length === 1 ? "is" : "are"} not in this installation of ONNX ` +
      `Runtime, which has ${available.join(", ")}. Where the libraries of the others come from: docs/gpu.md`,
  );
}

function availableIn(folders: readonly string[]): string[] {
  const files = folders.flatMap((folder) => readdirSync(folder));
  // CUDA and TensorRT both come through `shared`, and TensorRT leaves to CUDA what it cannot do.
  const has = (...names: readonly string[]) => names.every((name) => files.includes(`${PREFIX}${name}.so`));
  return [
    "cpu",
    ...(has("shared", "cuda") ? ["cuda"] : []),
    ...(has("shared", "cuda", "tensorrt") ? ["tensorrt"] : []),
  ];
}

/** bin/napi-v<version>/<platform>/<architecture> of the package; where the binding and its libraries are. */
function libraryFolders(): string[] {
  const bin = join(dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json")), "bin");
  return readdirSync(bin).map((version) => join(bin, version, process.platform, process.arch));
}
