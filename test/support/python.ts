/** Python for tests: a virtual environment per set of requirements, made once. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

import { errorCode } from "#platform/error-code.ts";

const run = promisify(execFile);
/** Inside node_modules, so that a clean install starts afresh and nothing of it is ever committed. */
const CACHE_DIR = resolve(import.meta.dirname, "../../node_modules/.cache/dream-engine-python");
const INSTALL_TIMEOUT_MS = 5 * 60_000;

/** The python of an environment with what the file lists. Two that make the same one at once both succeed. */
export async function ensurePython(requirementsFile: string): Promise<string> {
  const requirements = await readFile(requirementsFile);
  const ready = join(CACHE_DIR, createHash("sha256").update(requirements).digest("hex").slice(0, 12));
  const python = join(ready, "bin", "python");
  if (existsSync(python)) return python;

  await mkdir(CACHE_DIR, { recursive: true });
  const folder = await mkdtemp(`${ready}-`);
  try {
    await install(folder, requirementsFile);
    await symlink(folder, ready); // from here on it is there, whole
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    if (errorCode(error) !== "EEXIST" || !existsSync(python)) throw error;
  }
  return python;
}

async function install(folder: string, requirementsFile: string): Promise<void> {
  await run("python3", ["-m", "venv", folder], { timeout: INSTALL_TIMEOUT_MS }).catch((error: unknown) => {
    throw new Error(
      "These tests need Python 3.10 or later with venv. On Debian or Ubuntu: apt-get install -y python3 python3-venv",
      { cause: error },
    );
  });
  const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirementsFile];
  await run(join(folder, "bin", "python"), pip, { timeout: INSTALL_TIMEOUT_MS });
}
