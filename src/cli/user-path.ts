/** Files that a person at a terminal names. */
import { resolve } from "node:path";

import { errorCode } from "#platform/error-code.ts";

import { UserError } from "./user-error.ts";

const ROOT = resolve(import.meta.dirname, "../..");

/**
 * As it was typed; or whole where `npm run dream-engine` has moved us to the folder of the package and only notes where
 * its user stands.
 */
export function userPath(path: string): string {
  const { npm_lifecycle_event: script, INIT_CWD: stood } = process.env;
  const isMoved = script === "dream-engine" && stood !== undefined && process.cwd() === ROOT && resolve(stood) !== ROOT;
  return isMoved ? resolve(stood, path) : path;
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or folder",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of it is no folder",
  EACCES: "you may not",
  EPERM: "you may not",
};

export function cannotRead(path: string, error: unknown): UserError {
  const code = errorCode(error) ?? "unreadable";
  const reason = REASONS[code];
  return new UserError(`Cannot read ${resolve(path)}: ${reason === undefined ? code : `${reason} (${code})`}.`, {
    cause: error,
  });
}
