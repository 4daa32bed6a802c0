import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Command } from "commander";
import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { addSimulate } from "#cli/commands/simulate.ts";

import { run } from "./command.ts";

/** A command is a process, and a busy machine takes seconds to start one. */
vi.setConfig({ testTimeout: 90_000 });

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-simulate-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** In this process. Rejects with what the command ends with. */
async function simulate(...args: string[]): Promise<void> {
  const program = new Command().configureOutput({ writeErr: () => undefined }).exitOverride();
  addSimulate(program);
  for (const command of program.commands) command.copyInheritedSettings(program);
  await program.parseAsync(["simulate", ...args], { from: "user" });
}

test("simulate prints a table of policies and draws a plot", async () => {
  const svg = join(folder, "pool.svg");
  const trace = join(folder, "trace.jsonl");
  await writeFile(trace, '{"at_s": 0, "frames": 49}\n{"at_s": 1000, "frames": 49}\n');
  const { code, stdout, stderr } = await run(["simulate", "--trace", trace, "--svg", svg], {});
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("2 requests, 98 frames, revenue $0.05");
  expect(stdout).toMatch(/^this policy \(60 s window\) +\$0\.29 +-500\.1 % +2 +52\.2 % +44\.8 % +70\.0 s/m);
  expect(await readFile(svg, "utf8")).toMatch(/^<svg [^]*always warm \(1\)[^]*<\/svg>\n$/);
});

test("simulate prints JSON with what was asked", async () => {
  const log = vi.spyOn(console, "log").mockImplementation(() => undefined);
  await simulate("--workload", "poisson", "--frames", "4900", "--hours", "1", "--window", "30", "--json");
  const [[text] = []] = log.mock.calls;
  log.mockRestore();
  expect(JSON.parse(String(text))).toMatchObject({
    options: { workload: "poisson", frames: 4_900, window: 30, seed: 1 },
    requests: 100,
    frames: 4_900,
    policies: [{ policy: "this policy (30 s window)" }, {}, {}, {}, {}, {}],
  });
});

test("simulate says what it expected", async () => {
  const bad = join(folder, "bad.jsonl");
  await writeFile(bad, '{"at_s": 1, "frames": 0}\n');
  const wrong: [string[], string][] = [
    [["--workload", "monday"], "Allowed choices are poisson, bursty, diurnal, planner-dataset, adversary"],
    [["--frames", "many"], "expected a whole number from 1 to"],
    [["--cold-start", "-1"], "expected a number from 0 to 3600"],
    [["--minimum", "9", "--maximum", "8"], "--minimum 9 and --warm 1 have to be at most --maximum 8"],
    [["--trace", join(folder, "none.jsonl")], "there is no such file or folder"],
    [["--trace", bad], `${bad}: line 1: frames`],
    [["--frames", "49", "--svg", join(folder, "no", "such.svg")], "Cannot write"],
  ];
  for (const [args, message] of wrong) await expect(simulate(...args)).rejects.toThrow(message);
});
