/** The commands of a page for customers, run as they stand there, one after the other in one shell, against a gateway. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { mils } from "#contract/mils.ts";
import { actionsFile } from "#test/gateway/support/npy-writer.ts";
import { framePng } from "#test/gateway/support/requests.ts";
import { startTestGateway } from "#test/gateway/support/test-gateway.ts";

const SEPARATOR = "---- end of a block ----";

export interface PageShell {
  /** What each block of commands printed, and what came after the last one. */
  readonly printed: readonly string[];
  /** Where they ran; it had a start_frame.png and an actions.npy of 48 actions. */
  readonly folder: string;
  stop(): Promise<void>;
}

/** Rejects where a command fails. `text` is Markdown. */
export async function runCommandsOf(text: string): Promise<PageShell> {
  const gateway = await startTestGateway();
  const folder = await mkdtemp(join(tmpdir(), "dream-docs-"));
  async function stop(): Promise<void> {
    await gateway.stop();
    await rm(folder, { recursive: true, force: true });
  }
  try {
    const { url } = await gateway.listen();
    const key = await gateway.newKey(mils(10_000));
    await writeFile(join(folder, "start_frame.png"), await framePng());
    await writeFile(join(folder, "actions.npy"), actionsFile(48, 2));
    const blocks = [...text.matchAll(/^```sh\n([^`]*)^```$/gm)].map(([, block]) => block ?? "");
    const script = ["set -euo pipefail", ...blocks.flatMap((block) => [block, `echo; echo "${SEPARATOR}"`])].join("\n");
    const { stdout } = await promisify(execFile)("bash", ["-c", script], {
      cwd: folder,
      env: { PATH: process.env["PATH"] ?? "", BASE: url, KEY: key.api_key },
    });
    return { printed: stdout.split(SEPARATOR), folder, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
