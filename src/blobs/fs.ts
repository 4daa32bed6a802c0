/**
 * The blob store in a directory, which several processes (and, on a shared volume, machines) may use at once.
 * A write goes to a temporary name under `.incoming` of the same tree, is flushed, then renamed into place.
 */
import { randomUUID } from "node:crypto";
import {
  copyFile,
  link,
  mkdir,
  open,
  opendir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  unlink,
  utimes,
} from "node:fs/promises";
import { dirname, join, resolve } from "node:path";

import { errorCode } from "#platform/error-code.ts";

import { checkedKey, checkPrefix, checkRange, isBlobKey } from "./blob-key.ts";
import { type BlobInfo, BlobNotFound, type BlobStore } from "./blob-store.ts";

/** No key begins with a dot, so nothing of it is a blob. */
const INCOMING = ".incoming";
/** A temporary file this old belongs to a process that died. */
const STALE_MS = 24 * 3_600_000;
/** A delete next door may remove the directory between making it and renaming into it; it cannot go on like that. */
const RENAME_ATTEMPTS = 10;

export function createFsBlobs(rootDir: string): BlobStore {
  const root = resolve(rootDir);
  const incoming = join(root, INCOMING);
  let prepared: Promise<void> | undefined;

  const pathOf = (key: string): string => join(root, checkedKey(key));

  /** Runs `write` on a fresh temporary path, then moves the result to `target`. */
  async function replace(target: string, write: (temporary: string) => Promise<void>): Promise<void> {
    prepared ??= prepareIncoming(incoming).catch((error: unknown) => {
      prepared = undefined; // tried again by the next write
      throw error;
    });
    await prepared;
    const temporary = join(incoming, randomUUID());
    try {
      await write(temporary);
      await moveInto(temporary, target);
    } finally {
      // After a move nothing is left, unless both names were one file already (a copy made again): then a rename does nothing.
      await rm(temporary, { force: true });
    }
  }

  return {
    async put(key, body) {
      await replace(pathOf(key), async (temporary) => {
        const file = await open(temporary, "wx");
        try {
          await file.writeFile(body);
          await file.sync();
        } finally {
          await file.close();
        }
      });
    },

    async putFile(key, localPath) {
      const target = pathOf(key);
      await flush(localPath);
      try {
        await moveInto(localPath, target);
      } catch (error) {
        if (errorCode(error) !== "EXDEV") throw error;
        await replace(target, async (temporary) => {
          await copyFile(localPath, temporary);
          await flush(temporary);
        });
        await rm(localPath);
      }
    },

    async copy(from, to) {
      const source = pathOf(from);
      const target = pathOf(to);
      await replace(target, (temporary) => linkOrCopy(source, temporary).catch(notFound(from)));
    },

    async get(key) {
      return readFile(pathOf(key)).catch(notFound(key));
    },

    async info(key) {
      return infoOf(key, pathOf(key));
    },

    async stream(key, range) {
      if (range) checkRange(range);
      const file = await open(pathOf(key), "r").catch(notFound(key));
      if (!(await file.stat()).isFile()) {
        await file.close();
        throw new BlobNotFound(key);
      }
      return file.createReadStream(range ?? {}); // closes the file at its end or when destroyed
    },

    async delete(key) {
      const path = pathOf(key);
      await unlink(path).catch(unless(isAbsence));
      for (let dir = dirname(path), emptied = true; emptied && dir !== root; dir = dirname(dir)) {
        emptied = await removeIfEmpty(dir);
      }
    },

    async *list(prefix) {
      checkPrefix(prefix);
      for await (const key of keysUnder(root, prefix.slice(0, prefix.lastIndexOf("/") + 1), prefix)) {
        if (!isBlobKey(key)) continue; // somebody else's: nothing could be done with it by that name
        const info = await infoOf(key, join(root, key));
        if (info !== null) yield info;
      }
    },
  };
}

/** Keys that start with `prefix`, depth first; other folders are not entered. `folder` is "" or ends with a slash. */
async function* keysUnder(root: string, folder: string, prefix: string): AsyncIterable<string> {
  const entries = await opendir(join(root, folder)).catch(unless(isAbsence)); // or removed meanwhile
  for await (const entry of entries ?? []) {
    const path = folder + entry.name;
    if (entry.name.startsWith(".") || !path.startsWith(prefix)) continue;
    if (entry.isDirectory()) yield* keysUnder(root, `${path}/`, prefix);
    else yield path;
  }
}

async function infoOf(key: string, path: string): Promise<BlobInfo | null> {
  const found = await stat(path).catch(unless(isAbsence));
  return found?.isFile() ? { key, bytes: found.size, modified_ms: found.mtimeMs } : null;
}

/**
 * Blobs are replaced and never written into, so two names may share one file. Not every file system can do that, and none
 * for a file of another user. Both names are then as old as the copy: what looks for old blobs must not find a fresh one.
 */
async function linkOrCopy(source: string, temporary: string): Promise<void> {
  const now = new Date();
  try {
    await utimes(source, now, now);
    await link(source, temporary);
  } catch (error) {
    if (isAbsence(error)) throw error;
    await copyFile(source, temporary);
    await flush(temporary);
  }
}

async function moveInto(source: string, target: string): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await mkdir(dirname(target), { recursive: true });
      await rename(source, target);
      break;
    } catch (error) {
      if (errorCode(error) !== "ENOENT" || attempt === RENAME_ATTEMPTS) throw error;
    }
  }
  // The new name must survive a power cut as well, before anybody is told of it.
  // (A concurrent delete may have taken the blob and its directory already.)
  await flush(dirname(target)).catch(unless(isAbsence));
}

async function flush(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes the directory of temporary files, and removes what processes that died have left in it. */
async function prepareIncoming(incoming: string): Promise<void> {
  await mkdir(incoming, { recursive: true });
  const before = Date.now() - STALE_MS;
  for await (const entry of await opendir(incoming)) {
    const path = join(incoming, entry.name);
    const left = await stat(path).catch(unless(isAbsence)); // its owner may have moved it meanwhile
    if (left !== undefined && left.mtimeMs < before) await rm(path, { force: true });
  }
}

/** True when the directory is gone, whoever removed it. */
async function removeIfEmpty(dir: string): Promise<boolean> {
  try {
    await rmdir(dir);
    return true;
  } catch (error) {
    const code = String(errorCode(error));
    if (["ENOENT", "ENOTEMPTY", "EEXIST", "ENOTDIR"].includes(code)) return code === "ENOENT";
    throw error;
  }
}

/** No such file, or a key that is (or runs through) the place of another kind of entry. */
const isAbsence = (error: unknown): boolean => ["ENOENT", "ENOTDIR", "EISDIR"].includes(String(errorCode(error)));

/** For `.catch`: undefined instead of an expected error. */
function unless(expected: (error: unknown) => boolean): (error: unknown) => undefined {
  return (error) => {
    if (!expected(error)) throw error;
  };
}

function notFound(key: string): (error: unknown) => never {
  return (error) => {
    throw isAbsence(error) ? new BlobNotFound(key) : error;
  };
}
