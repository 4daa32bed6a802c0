import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, expect, test } from "vitest";

import { makeFolders } from "#cli/folders.ts";

const home = mkdtempSync(join(tmpdir(), "dream-folders-"));
afterAll(() => rmSync(home, { recursive: true }));

test("makes a folder and those above it, and leaves one that exists", async () => {
  const path = join(home, "a", "b", "c");
  await makeFolders(path, 0o711);
  await makeFolders(path, 0o711);
  expect(existsSync(path)).toBe(true);
});

test("a file in its place is an error", async () => {
  const file = join(home, "file");
  writeFileSync(file, "");
  await expect(makeFolders(file, 0o711)).rejects.toThrow("EEXIST");
});

test.runIf(existsSync("/proc/self"))("ends where no folder can be made", async () => {
  await expect(makeFolders("/proc/nope/data", 0o711)).rejects.toThrow("ENOENT");
});
