/** What an archive is kept in while it is read: gone with its process, however that ends. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { expect, test } from "vitest";

import { openSpool } from "#datasets/spool.ts";

async function* pieces(...texts: readonly string[]): AsyncGenerator<Buffer> {
  for (const text of texts) yield Buffer.from(text);
}

async function textOf(chunks: AsyncIterable<Buffer>): Promise<string> {
  let text = "";
  for await (const chunk of chunks) text += chunk.toString();
  return text;
}

async function* broken(): AsyncGenerator<Buffer> {
  yield Buffer.from("one");
  throw new Error("the caller is gone");
}

test("gives what was written, from the beginning each time, also after somebody stopped in the middle", async () => {
  const spool = await openSpool();
  try {
    expect(await textOf(spool.read())).toBe("");
    await spool.write(pieces("one ", "two ", "three"));
    for await (const _chunk of spool.read()) break;
    expect(await textOf(spool.read())).toBe("one two three");
    expect(await textOf(spool.read())).toBe("one two three");
  } finally {
    await spool.close();
  }
});

test("a source that breaks off breaks the writing, and the spool can still be closed", async () => {
  const spool = await openSpool();
  await expect(spool.write(broken())).rejects.toThrow("the caller is gone");
  await spool.close();
});

test("a process that is killed in the middle leaves nothing on the disk", async () => {
  const folder = await mkdtemp(join(tmpdir(), "dream-engine-test-spool-"));
  try {
    const program = `
      import { openSpool } from "#datasets/spool.ts";
      const spool = await openSpool();
      await spool.write((async function* () {
        yield Buffer.alloc(1_000_000);
        yield Buffer.alloc(1_000_000);
        console.log("written");
        await new Promise((resolve) => setTimeout(resolve, 60_000));
      })());`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
      env: { ...process.env, TMPDIR: folder },
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    // While it lives, too.
    expect(await readdir(folder)).toEqual([]);
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
    expect(await readdir(folder)).toEqual([]);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
