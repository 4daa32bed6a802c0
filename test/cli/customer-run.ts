/** Customer's commands against a real gateway: as processes, in a folder of their own. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { actionsFile } from "#test/gateway/support/npy-writer.ts";
import { framePng } from "#test/gateway/support/requests.ts";

import { type Ran, run, start, type Started } from "./command.ts";

const PROGRAM = resolve("src/cli/main.ts");

export interface CustomerShell {
  readonly folder: string;
  /** What the commands get of the environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Absolute path of a file of the folder. */
  path(name: string): string;
  run(...args: string[]): Promise<Ran>;
  start(...args: string[]): Started;
  /** The one document on stdout; throws where there is anything else, or an exit code other than `code`. */
  json(code: number, ...args: string[]): Promise<Record<string, unknown>>;
  remove(): Promise<void>;
}

/** `frame.png` and `actions.npy` (48 actions of the test model) are there. */
export async function openShell(url: string, key: string): Promise<CustomerShell> {
  const folder = await mkdtemp(join(tmpdir(), "dream-cli-"));
  await writeFile(join(folder, "frame.png"), await framePng());
  await writeFile(join(folder, "actions.npy"), actionsFile(48, 2));
  const env = { DREAM_API_KEY: key, DATA_DIR: join(folder, "data"), PUBLIC_URL: url };
  const runIn = (args: readonly string[]): Promise<Ran> => run([PROGRAM, ...args], env, folder);
  return {
    folder,
    env,
    path: (name) => join(folder, name),
    run: (...args) => runIn(args),
    start: (...args) => start([PROGRAM, ...args], env, folder),
    async json(code, ...args) {
      const ran = await runIn([...args, "--json"]);
      if (ran.code !== code)
        throw new Error(`${args.join(" ")} ended with ${ran.code}, expected ${code}: ${ran.stderr}`);
      return JSON.parse(ran.stdout) as Record<string, unknown>;
    },
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** JSON lines. */
export const linesOf = ({ stdout }: Ran): Record<string, unknown>[] =>
  stdout
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
