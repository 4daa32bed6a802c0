import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";

import { errorCode } from "#platform/error-code.ts";

/**
 * Makes a folder and those above it, level by level: Node's own recursive mkdir never ends, at full load, where a
 * level cannot be made at all (below /proc). One that exists keeps its mode; a file in its place is EEXIST.
 */
export async function makeFolders(path: string, mode: number): Promise<void> {
  try {
    await mkdir(path, { mode });
  } catch (error) {
    const code = errorCode(error);
    // Of one level alone, `recursive` only means: a folder that is there already is no error, anything else is.
    if (code === "EEXIST") await mkdir(path, { recursive: true });
    else if (code === "ENOENT" && dirname(path) !== path) {
      await makeFolders(dirname(path), mode);
      await mkdir(path, { mode });
    } else throw error;
  }
}
