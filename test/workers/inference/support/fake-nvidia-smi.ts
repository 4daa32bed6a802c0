/** A program that answers as nvidia-smi does, on a machine without NVIDIA devices. */
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";

export interface FakeAnswer {
  readonly stdout: string;
  /** nvidia-smi's own: 6 without a device, 9 without a driver that runs. */
  readonly code?: number;
}

const QUERY = "--query-gpu=index,uuid,name,memory.total,memory.free --format=csv,noheader,nounits";

/** Two devices; the second one is in use. */
export const TWO_DEVICES =
  "0, GPU-0a1b2c3d-1111-2222-3333-444455556666, NVIDIA L4, 23034, 22560\n" +
  "1, GPU-9f8e7d6c-1111-2222-3333-444455556666, NVIDIA L4, 23034, 1200\n";

/** Writes it into `folder` and returns its path. What it is not asked exactly so, it refuses, as the real one does. */
export async function writeFakeNvidiaSmi(folder: string, { stdout, code = 0 }: FakeAnswer): Promise<string> {
  const path = join(folder, "nvidia-smi");
  const lines = [
    "#!/bin/sh",
    `if [ "$*" != "${QUERY}" ]; then echo 'ERROR: Option is not recognized. Please run nvidia-smi -h.'; exit 2; fi`,
    "cat <<'ANSWER'",
    stdout.replace(/\n$/, ""),
    "ANSWER",
    `exit ${code}`,
  ];
  await writeFile(path, `${lines.join("\n")}\n`);
  await chmod(path, 0o755);
  return path;
}
