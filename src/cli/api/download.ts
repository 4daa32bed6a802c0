/**
 * Files from signed links to the disk: written beside their place and renamed when whole, so that a name that exists is
 * a file that is complete. What a broken download left is gone on with.
 */
import { createWriteStream } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";

import { errorCode } from "#platform/error-code.ts";

import { UserError } from "../user-error.ts";
import { ApiProblem, noAnswer, problemOf } from "./problem.ts";

/** Asks for the file, from its byte `from` on; an answer that is no 2xx is thrown as ApiProblem. */
export type OpenFile = (from: number, signal: AbortSignal) => Promise<Response>;

export interface DownloadOptions {
  readonly open: OpenFile;
  readonly file: string;
  /** What the file must come to; null where nobody said. */
  readonly bytes: number | null;
  /** Tells this content from another one of the same name: only then may a partial file be gone on with. */
  readonly version: string;
  readonly signal?: AbortSignal;
  readonly onBytes?: (bytes: number) => void;
}

/** Without a byte for so long, a connection counts as dead. */
const IDLE_TIMEOUT_MS = 60_000;

/** One try; throws ApiProblem where another one may help. Resolves with the file's size. */
export async function download({ open, file, bytes, version, signal, onBytes }: DownloadOptions): Promise<number> {
  const part = partOf(file, version);
  const have = (await sizeOf(part)) ?? 0;
  const from = bytes !== null && have > 0 && have < bytes ? have : 0;
  const idle = idleTimeout(signal);
  try {
    const response = await open(from, idle.signal);
    const isRest = response.status === 206 && startOf(response) === from;
    if (response.status === 206 && !isRest) throw new Error("the server sent another range than it was asked for");
    const before = isRest ? from : 0;
    const announced = Number(response.headers.get("content-length") ?? Number.NaN);
    const expected = bytes ?? (Number.isInteger(announced) ? announced : null);

    let written = before;
    await pipeline(
      async function* () {
        if (response.body === null) return;
        for await (const chunk of response.body) {
          idle.refresh();
          written += chunk.length;
          onBytes?.(chunk.length);
          yield chunk;
          if (expected !== null && written > expected) return; // told below; it may have no end
        }
      },
      // At its place rather than at the end: two downloads into one folder write the same bytes to the same places.
      createWriteStream(part, isRest ? { flags: "r+", start: from } : { flags: "w" }),
    );
    const stored = await sizeOf(part);
    if (stored !== written || (expected !== null && written !== expected)) {
      await rm(part, { force: true }); // whatever it is, it is not the beginning of what we want
      throw new ApiProblem(`${basename(file)}: expected ${expected ?? written} bytes, got ${stored ?? 0}`, {
        status: null,
        code: null,
      });
    }
    await rename(part, file);
    return written;
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof ApiProblem) throw error;
    throw onDisk(error, part) ?? brokenOff(basename(file), error);
  } finally {
    idle.end();
  }
}

/** Its size; null when there is no such file. */
export async function sizeOf(file: string): Promise<number | null> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    if (errorCode(error) === "ENOENT") return null;
    throw error;
  }
}

/** Hidden, so that whoever lists the folder's videos meets whole ones only. */
function partOf(file: string, version: string): string {
  return join(dirname(file), `.${basename(file)}.${version}.part`);
}

/** The link is its own credential: no key goes to wherever it leads. */
export const openLink =
  (url: string): OpenFile =>
  async (from, signal) => {
    const response = await fetch(url, { signal, headers: from === 0 ? {} : { range: `bytes=${from}-` } }).catch(
      (error: unknown) => {
        signal.throwIfAborted();
        throw noAnswer(url, error);
      },
    );
    if (response.ok) return response;
    throw await problemOf(response);
  };

function brokenOff(name: string, error: unknown): ApiProblem {
  const reason = error instanceof Error ? error.message : String(error);
  return new ApiProblem(`${name} broke off: ${reason}.`, { status: null, code: null }, { cause: error });
}

function startOf(response: Response): number | null {
  const match = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "");
  return match ? Number(match[1]) : null;
}

function idleTimeout(outer: AbortSignal | undefined) {
  const controller = new AbortController();
  const timer = setTimeout(() => {
    controller.abort(new Error(`nothing came for ${IDLE_TIMEOUT_MS / 1_000} s`));
  }, IDLE_TIMEOUT_MS);
  return {
    signal: outer ? AbortSignal.any([outer, controller.signal]) : controller.signal,
    refresh: () => timer.refresh(),
    end: () => clearTimeout(timer),
  };
}

/** A full or missing folder is no matter of the network, and trying again helps nobody. */
function onDisk(error: unknown, part: string): UserError | null {
  const code = errorCode(error);
  if (
    code === undefined ||
    !["ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR"].includes(code)
  ) {
    return null;
  }
  return new UserError(`Cannot write ${part}: ${code}.`, { cause: error });
}
