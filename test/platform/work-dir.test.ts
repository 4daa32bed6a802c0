/** Folders for files in the making: whoever lives keeps its own, and nobody's stays for ever. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

import { afterEach, beforeEach, expect, test } from "vitest";

import { createWorkDir, STALE_MS, type WorkDir } from "#platform/work-dir.ts";

import { eventually } from "../queue/test-queue.ts";

let parent: string;
const open: WorkDir[] = [];
const children: ChildProcess[] = [];
beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "dream-engine-test-work-"));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  await Promise.all(open.splice(0).map((dir) => dir.stop()));
  await rm(parent, { recursive: true, force: true });
});

async function create(options: Parameters<typeof createWorkDir>[1] = {}): Promise<WorkDir> {
  const dir = await createWorkDir("tests", { parent, ...options });
  open.push(dir);
  return dir;
}
const later = (ms: number) => () => Date.now() + ms;

/** A process with a folder and a file in it; both are there when this resolves. */
async function startOther(): Promise<{ child: ChildProcess; path: string }> {
  const program = `
    import { createWorkDir } from "#platform/work-dir.ts";
    import { writeFileSync } from "node:fs";
    const { path } = await createWorkDir("tests", { parent: ${JSON.stringify(parent)} });
    writeFileSync(path + "/half.mp4", "half");
    console.log(path);
    setInterval(() => undefined, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  const [said] = (await once(child.stdout, "data")) as [Buffer]; // of a pipe without an encoding
  return { child, path: said.toString().trim() };
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

test("what a killed process left goes with the next start, once nobody has touched it for a while", async () => {
  const { child, path } = await startOther();
  await kill(child);
  const soon = await create({ now: later(STALE_MS / 2) });
  expect((await readdir(parent)).toSorted()).toEqual([path, soon.path].map((each) => basename(each)).toSorted());
  const next = await create({ now: later(STALE_MS + 60_000) });
  expect((await readdir(parent)).toSorted()).toEqual([soon.path, next.path].map((each) => basename(each)).toSorted());
});

test("what a killed process left goes while others run on, too", async () => {
  const { child, path } = await startOther();
  let aheadMs = 0;
  await create({ now: () => Date.now() + aheadMs, beatMs: 20 });
  await kill(child);
  aheadMs = STALE_MS + 60_000;
  await eventually(async () => !(await readdir(parent)).includes(basename(path)));
  expect(await readdir(parent)).toHaveLength(1);
});

test("a process that lives keeps its folder, whatever the clock says: its machine may have slept", async () => {
  const { path } = await startOther();
  const own = await create();
  await create({ now: later(10 * STALE_MS) });
  expect(await readdir(parent)).toEqual(expect.arrayContaining([basename(path), basename(own.path)]));
});

test("a process with the same id that was started at another time is another one: containers repeat ids", async () => {
  const { path } = await create();
  const earlier = join(parent, basename(path).replace(/-(\d+)-(\d+)-/, `-${process.pid}-1-`));
  await mkdir(earlier);
  await create({ now: later(STALE_MS / 2) });
  expect(await readdir(parent)).toContain(basename(earlier));
  await create({ now: later(STALE_MS + 60_000) });
  expect(await readdir(parent)).not.toContain(basename(earlier));
});

test("one that is in use in another container is touched, and so stays; one that was tidied away comes back", async () => {
  const dir = await create({ beatMs: 20 });
  await utimes(dir.path, 1, 1);
  await eventually(async () => (await stat(dir.path)).mtimeMs > Date.now() - 60_000);
  await rm(dir.path, { recursive: true });
  await eventually(async () => (await readdir(parent)).includes(basename(dir.path)));
  expect((await stat(dir.path)).mode & 0o777).toBe(0o700);
});

test("stopping removes it, and it does not come back", async () => {
  const dir = await create({ beatMs: 1 });
  await writeFile(join(dir.path, "half.mp4"), "half");
  await Promise.all([dir.stop(), dir.stop()]);
  expect(await readdir(parent)).toEqual([]);
});

test("a folder that cannot be cleared away, another user's for example, keeps nobody from working", async () => {
  await chmod(parent, 0o1777);
  const left = join(parent, "dream-engine-work-tests-999999999-1-abcdef");
  await mkdir(left);
  await writeFile(join(left, "half.mp4"), "half");
  await chmod(left, 0o500);
  const rootId = process.geteuid?.();
  if (rootId === 0) process.seteuid?.(65_534); // root may do everything; nobody may not
  try {
    const next = await create({ now: later(STALE_MS + 60_000) });
    expect((await readdir(parent)).toSorted()).toEqual([left, next.path].map((each) => basename(each)).toSorted());
  } finally {
    if (rootId === 0) process.seteuid?.(0);
    await chmod(left, 0o700);
  }
});
