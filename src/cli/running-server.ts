/** Where the `serve` of a data folder can be reached, for commands that run beside it. */
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Type, type Static } from "typebox";
import { Compile } from "typebox/compile";

import { processInfo } from "#platform/processes.ts";

const RunningServer = Type.Object({ pid: Type.Integer({ minimum: 1 }), started: Type.String(), url: Type.String() });
export type RunningServer = Static<typeof RunningServer>;

const schema = Compile(RunningServer);
const fileIn = (dataDir: string): string => join(dataDir, "serve.json");

/** The running server, or null when there is none (a note that a killed one left behind does not count). */
export async function findRunningServer(dataDir: string): Promise<RunningServer | null> {
  const noted = await notedServer(dataDir);
  return noted !== null && (await processInfo(noted.pid))?.started === noted.started ? noted : null;
}

/** The server that wrote the note, whether it still runs or was killed. */
export async function notedServer(dataDir: string): Promise<RunningServer | null> {
  const text = await readFile(fileIn(dataDir), "utf8").catch(() => null); // no server has run here yet
  if (text === null) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null; // half-written by a power cut
  }
  return schema.Check(value) ? value : null;
}

/** Notes this process as the server of the data folder; returns the note's removal. */
export async function noteRunningServer(dataDir: string, url: string): Promise<() => Promise<void>> {
  const started = (await processInfo(process.pid))?.started ?? "";
  const draft = `${fileIn(dataDir)}.${process.pid}`;
  await writeFile(draft, JSON.stringify({ pid: process.pid, started, url } satisfies RunningServer));
  await rename(draft, fileIn(dataDir));
  return () => rm(fileIn(dataDir), { force: true });
}
