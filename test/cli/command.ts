/** Runs our commands as a person does: as processes. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const PROGRAM = "src/cli/main.ts";

/** `env` is all the process gets beside PATH, HOME and where Node keeps compiled code. */
export async function run(args: readonly string[], env: Readonly<Record<string, string>>, cwd = "."): Promise<Ran> {
  const started = start(args, env, cwd);
  const [code] = (await once(started.child, "close")) as [number | null];
  return { code, stdout: started.stdout(), stderr: started.stderr() };
}

export interface Started {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
}

/** `args` may begin with another program of ours than the CLI, such as src/cli/demo.ts. */
export function start(args: readonly string[], env: Readonly<Record<string, string>>, cwd = "."): Started {
  const [first = ""] = args;
  const argv = first.endsWith(".ts") ? args : [PROGRAM, ...args];
  const child = spawn(process.execPath, argv, {
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
      ...env,
    },
    stdio: ["ignore", "pipe", "pipe"],
    cwd,
  });
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].on("data", (chunk: Buffer) => {
      texts[name] += chunk.toString();
    });
  }
  return { child, stdout: () => texts.stdout, stderr: () => texts.stderr };
}
