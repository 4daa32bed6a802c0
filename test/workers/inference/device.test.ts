/** What a worker says about the NVIDIA device that it is to use, before it loads a bundle; with a program in nvidia-smi's place. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { checkDevice, deviceMemory, readDevice } from "#workers/inference/engine/device.ts";
import { checkProviders, isOnDevice } from "#workers/inference/engine/providers.ts";
import { readWorkerSettings } from "#workers/inference/settings.ts";

import { type FakeAnswer, TWO_DEVICES, writeFakeNvidiaSmi } from "./support/fake-nvidia-smi.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-engine-test-device-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

interface Machine extends FakeAnswer {
  readonly device?: number;
  readonly visible?: string;
}

async function queryOn({ device = 0, visible, ...answer }: Machine) {
  return { device, visible, nvidiaSmi: await writeFakeNvidiaSmi(folder, answer) };
}

test.each([
  ["by its number", {}, "0 (NVIDIA L4)"],
  ["by another number", { device: 1 }, "1 (NVIDIA L4)"],
  ["by its number among those that are visible", { visible: "1" }, "1 (NVIDIA L4)"],
  ["by its place in another order", { visible: "1, 0", device: 1 }, "0 (NVIDIA L4)"],
  ["by the beginning of its UUID", { visible: "GPU-9f8e" }, "1 (NVIDIA L4)"],
])("finds a device %s", async (_, which, label) => {
  expect(await readDevice(await queryOn({ stdout: TWO_DEVICES, ...which }))).toMatchObject({ label });
});

test.each([
  ["that is not there", { device: 2 }, "device 2 is not there; this machine has 0 (NVIDIA L4), 1 (NVIDIA L4)"],
  ["that is hidden", { visible: "0", device: 1 }, "device 1 is not among CUDA_VISIBLE_DEVICES=0"],
  ["where all are hidden", { visible: "" }, "device 0 is not among CUDA_VISIBLE_DEVICES="],
  ["by a UUID that is not there", { visible: "GPU-ffff" }, "device GPU-ffff is not there"],
])("refuses a device %s", async (_, which, message) => {
  await expect(readDevice(await queryOn({ stdout: TWO_DEVICES, ...which }))).rejects.toThrow(message);
});

test.each<[string, FakeAnswer, string]>([
  ["there is none", { stdout: "No devices were found", code: 6 }, "says: No devices were found"],
  [
    "its driver does not run",
    { stdout: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code: 9 },
    "says: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
  ],
  ["it lists nothing", { stdout: "" }, "device 0 is not there; this machine has none"],
  ["the answer is garbage", { stdout: "Segmentation fault" }, 'answered "Segmentation fault"'],
  ["the memory is not told", { stdout: "0, GPU-0a, NVIDIA GB10, [N/A], [N/A]" }, 'NVIDIA GB10, [N/A], [N/A]"'],
])("says what is wrong when %s", async (_, answer, message) => {
  await expect(readDevice(await queryOn(answer))).rejects.toThrow(message);
});

test("says that there is no driver where nvidia-smi is not installed", async () => {
  const query = { device: 0, visible: undefined, nvidiaSmi: join(folder, "nowhere") };
  await expect(readDevice(query)).rejects.toThrow(/not installed, so there is no NVIDIA driver, or .* without --gpus$/);
});

test("refuses a device with less free memory than the bundle needs, and says how much there is", async () => {
  const full = await queryOn({ stdout: TWO_DEVICES, device: 1 });
  await expect(checkDevice(full, 8_000)).rejects.toThrow(
    "device 1 (NVIDIA L4) has 1200 MiB free of 23034, and the bundle needs 8000 (engine.device_memory_mib)",
  );
  expect(await checkDevice(full, 1_200)).toMatchObject({ freeMib: 1_200 });
  expect(await checkDevice(full, undefined)).toMatchObject({ freeMib: 1_200 });
});

test("tells warm-up what is used and free on the device now", async () => {
  const memory = await deviceMemory(await queryOn({ stdout: TWO_DEVICES }));
  expect(await memory?.read()).toEqual({ usedBytes: 474 * 2 ** 20, availableBytes: 22_560 * 2 ** 20 });
  await writeFakeNvidiaSmi(folder, { stdout: TWO_DEVICES.replace("22560", "22000") });
  expect(await memory?.read()).toEqual({ usedBytes: 1_034 * 2 ** 20, availableBytes: 22_000 * 2 ** 20 });
});

test("knows nothing of a slice of a device, and says nothing of it", async () => {
  const slice = await queryOn({ stdout: TWO_DEVICES, visible: "MIG-0a1b2c3d" });
  expect(await checkDevice(slice, 8_000)).toBeNull();
  expect(await deviceMemory(slice)).toBeNull();
});

/** A folder with these providers' libraries. */
async function installed(...names: readonly string[]): Promise<string[]> {
  const libraries = join(folder, `libraries-${names.join("-")}`);
  await mkdir(libraries, { recursive: true });
  for (const name of names) await writeFile(join(libraries, `libonnxruntime_providers_${name}.so`), "");
  return [libraries];
}

describe("providers", () => {
  test("of the npm package are the CPU's alone", () => {
    expect(() => checkProviders(["cpu"])).not.toThrow();
    expect(() => checkProviders(["tensorrt", "cuda", "cpu"])).toThrow(
      "ORT_PROVIDERS: tensorrt, cuda are not in this installation of ONNX Runtime, which has cpu.",
    );
  });

  test("are those whose libraries lie beside it", async () => {
    const cuda = await installed("shared", "cuda");
    expect(() => checkProviders(["cuda", "cpu"], cuda)).not.toThrow();
    expect(() => checkProviders(["tensorrt"], cuda)).toThrow("tensorrt is not in this installation");
    expect(() => checkProviders(["tensorrt"], cuda)).toThrow("which has cpu, cuda.");
    const all = await installed("shared", "cuda", "tensorrt");
    expect(() => checkProviders(["tensorrt", "cuda"], all)).not.toThrow();
    const halved = await installed("cuda", "tensorrt");
    expect(() => checkProviders(["cuda"], halved)).toThrow("which has cpu.");
  });

  test("use a device unless they are the CPU's", () => {
    expect([["cpu"], ["cuda", "cpu"], ["tensorrt"]].map(isOnDevice)).toEqual([false, true, true]);
  });
});

const read = (env: NodeJS.ProcessEnv) => readWorkerSettings({ MODEL: "tiny", ...env });

describe("settings", () => {
  test("leave threads to the default and take the first device", () => {
    expect(read({ ORT_THREADS: "", ORT_DEVICE: "" })).toMatchObject({ threads: undefined, device: 0 });
    expect(read({ ORT_THREADS: "6", ORT_DEVICE: "1" })).toMatchObject({ threads: 6, device: 1 });
  });

  test.each([
    [{ ORT_THREADS: "0" }, 'ORT_THREADS: expected a number from 1 to 256, got "0"'],
    [{ ORT_THREADS: "all" }, 'ORT_THREADS: expected a number from 1 to 256, got "all"'],
    [{ ORT_THREADS: "1.5" }, "ORT_THREADS: expected a number from 1 to 256"],
    [{ ORT_DEVICE: "-1" }, 'ORT_DEVICE: expected a number from 0 to 63, got "-1"'],
    [{ ORT_TENSORRT_FP16_ENABLE: "1" }, "ORT_TENSORRT_FP16_ENABLE: ONNX Runtime's binding for Node does not heed"],
  ])("%j is refused", (env, message) => {
    expect(() => read(env)).toThrow(message);
  });
});
