/**
 * An NVIDIA device's memory, as nvidia-smi tells it: ONNX Runtime's binding for Node cannot be asked. Its numbers of
 * devices are those of CUDA_DEVICE_ORDER=PCI_BUS_ID, and it does not heed CUDA_VISIBLE_DEVICES; this does.
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

import type { MemoryGauge } from "./warm-up.ts";

const run = promisify(execFile);
const MIB = 2 ** 20;
const QUERY = ["--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"];
/** It takes tenths of a second, and hangs when a device has fallen off its bus. */
const TIMEOUT_MS = 20_000;
/** A slice of a device is named so, and nvidia-smi does not list it among the devices. */
const MIG_PREFIX = "MIG-";

/** No such device, none that can be used, or one with too little memory. */
export class DeviceError extends Error {
  override readonly name = "DeviceError";
}

export interface Device {
  /** "0 (NVIDIA L4)". */
  readonly label: string;
  readonly totalMib: number;
  readonly freeMib: number;
}

export interface DeviceQuery {
  /** Number among the devices that CUDA shows this process. */
  readonly device: number;
  /** The variable CUDA_VISIBLE_DEVICES: numbers or the beginnings of UUIDs, separated by commas. */
  readonly visible: string | undefined;
  /** The program; by default the one on PATH. */
  readonly nvidiaSmi?: string;
}

/** Null for a slice of a device, of which nothing is known. Throws DeviceError. */
export async function readDevice({ device, visible, nvidiaSmi = "nvidia-smi" }: DeviceQuery): Promise<Device | null> {
  const shown = visible?.split(",").map((id) => id.trim());
  const id = shown ? shown[device] : String(device);
  if (!id) throw new DeviceError(`device ${device} is not among CUDA_VISIBLE_DEVICES=${visible}`);
  if (id.startsWith(MIG_PREFIX)) return null;
  const answer = await ask(nvidiaSmi);
  const devices = answer.split("\n").filter(Boolean).map(parseDevice);
  const found = devices.find(({ index, uuid }) => index === id || (id.startsWith("GPU-") && uuid.startsWith(id)));
  if (found) return found;
  const there = devices.map(({ label }) => label).join(", ");
  throw new DeviceError(`device ${id} is not there; this machine has ${there === "" ? "none" : there}`);
}

/** Throws DeviceError when less memory is free than the bundle needs. */
export async function checkDevice(query: DeviceQuery, neededMib: number | undefined): Promise<Device | null> {
  const device = await readDevice(query);
  if (device && neededMib !== undefined && device.freeMib < neededMib) {
    const { label, freeMib, totalMib } = device;
    throw new DeviceError(
      `device ${label} has ${freeMib} MiB free of ${totalMib}, and the bundle needs ${neededMib} (engine.device_memory_mib)`,
    );
  }
  return device;
}

/** What is in use on the device, whoever uses it; null for a slice of a device. */
export async function deviceMemory(query: DeviceQuery): Promise<MemoryGauge | null> {
  if ((await readDevice(query)) === null) return null;
  return {
    async read() {
      const device = await readDevice(query);
      if (!device) throw new DeviceError("the device cannot be asked any more");
      return { usedBytes: (device.totalMib - device.freeMib) * MIB, availableBytes: device.freeMib * MIB };
    },
  };
}

async function ask(nvidiaSmi: string): Promise<string> {
  try {
    return (await run(nvidiaSmi, QUERY, { timeout: TIMEOUT_MS })).stdout;
  } catch (error) {
    const { code, killed, stdout } = error as { code?: unknown; killed?: boolean; stdout?: string };
    const why =
      code === "ENOENT"
        ? `${nvidiaSmi} is not installed, so there is no NVIDIA driver, or this container was started without --gpus`
        : killed
          ? `${nvidiaSmi} did not answer within ${TIMEOUT_MS} ms`
          : // It says what is wrong on its standard output.
            `${nvidiaSmi} says: ${stdout?.trim() || String(error)}`;
    throw new DeviceError(`no device can be used: ${why}`, { cause: error });
  }
}

function parseDevice(line: string): Device & { index: string; uuid: string } {
  const fields = line.split(",").map((field) => field.trim());
  const [index = "", uuid = ""] = fields;
  const [total = "", free = ""] = fields.slice(-2);
  if (fields.length < 5 || ![index, total, free].every((field) => /^\d+$/.test(field))) {
    throw new DeviceError(
      `nvidia-smi was asked for index, uuid, name, memory.total, memory.free and answered ${JSON.stringify(line)}`,
    );
  }
  const label = `${index} (${fields.slice(2, -2).join(", ")})`;
  return { index, uuid, label, totalMib: Number(total), freeMib: Number(free) };
}
