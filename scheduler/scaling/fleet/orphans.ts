/**
 * Workers whose parent was killed end by themselves when its channel closes. For one that cannot (it hangs inside
 * native code) each fleet leaves a note of its processes, and the next start ends what such notes still name.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Type, type Static } from "typebox";
import { Compile } from "typebox/compile";

import { errorCode } from "#platform/error-code.ts";
import type { Log } from "#platform/log.ts";
import { processInfo } from "#platform/processes.ts";

const Named = Type.Object({ pid: Type.Integer({ minimum: 2 }), started: Type.String() });
const Note = Type.Object({ parent: Named, workers: Type.Array(Named, { maxItems: 1_000 }) });
type Note = Static<typeof Note>;
export type NamedProcess = Static<typeof Named>;

const noteSchema = Compile(Note);

export interface FleetNote {
  write(workers: readonly NamedProcess[]): Promise<void>;
  remove(): Promise<void>;
}

/** The note of this process in `folder`; one file a fleet, so that two on one folder do not overwrite each other. */
export async function openNote(folder: string): Promise<FleetNote> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const self = await nameProcess(process.pid);
  const file = join(folder, `${process.pid}.json`);
  return {
    async write(workers) {
      const draft = `${file}.new`;
      await writeFile(draft, JSON.stringify({ parent: self, workers: [...workers] } satisfies Note));
      await rename(draft, file);
    },
    remove: () => rm(file, { force: true }),
  };
}

/** A name that survives the reuse of process ids. */
export async function nameProcess(pid: number): Promise<NamedProcess> {
  return { pid, started: (await processInfo(pid))?.started ?? "" };
}

/** Kills the workers of fleets that are gone; how many. */
export async function killOrphans(folder: string, log: Log): Promise<number> {
  const names = await readdir(folder).catch(() => []); // no folder: no fleet ever ran here
  let killed = 0;
  for (const name of names.filter((name) => name.endsWith(".json"))) {
    const file = join(folder, name);
    const note = await readNote(file);
    if (note && (await isAlive(note.parent))) continue;
    for (const worker of note?.workers ?? []) {
      if (!(await isAlive(worker))) continue;
      log.warn({ pid: worker.pid }, "ending an inference worker whose parent is gone");
      if (kill(worker.pid)) killed += 1;
    }
    await rm(file, { force: true });
  }
  return killed;
}

/** False when it ended by itself just now. */
function kill(pid: number): boolean {
  try {
    return process.kill(pid, "SIGKILL");
  } catch (error) {
    if (errorCode(error) === "ESRCH") return false;
    throw error;
  }
}

async function isAlive({ pid, started }: NamedProcess): Promise<boolean> {
  return (await processInfo(pid))?.started === started;
}

async function readNote(file: string): Promise<Note | null> {
  try {
    const value: unknown = JSON.parse(await readFile(file, "utf8"));
    return noteSchema.Check(value) ? value : null;
  } catch {
    return null; // half-written by a power cut: it names nobody we could be sure of
  }
}
