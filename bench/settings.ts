/** What a benchmark reads from its environment, and where its results go. */
import { mkdir, writeFile } from "node:fs/promises";
import { loadavg } from "node:os";
import { join } from "node:path";

import { describeMachine } from "./machine.ts";

/** A comma-separated list of numbers from the environment. */
export function numbersOf(name: string, fallback: readonly number[]): readonly number[] {
  const text = process.env[name];
  const numbers = text === undefined ? fallback : text.split(",").map(Number);
  if (numbers.length === 0 || !numbers.every((number) => number >= 0)) {
    throw new Error(`${name}: expected numbers, got ${JSON.stringify(text)}`);
  }
  return numbers;
}

export function numberOf(name: string, fallback: number): number {
  const [number = fallback, ...others] = numbersOf(name, [fallback]);
  if (others.length > 0) throw new Error(`${name}: expected one number, got ${JSON.stringify(process.env[name])}`);
  return number;
}

/** Of the last minute, when this was loaded: what else ran on the machine was measured along. */
const [LOAD_AVERAGE_BEFORE = 0] = loadavg();

export interface Report {
  /** Of the script and of the files: `ablation` is made by `npm run bench:ablation`. */
  readonly name: string;
  /** Of the files where they are called otherwise: a report of one bundle among several. */
  readonly files?: string;
  readonly title: string;
  /** How it was measured, beside the machine. */
  readonly how: string;
  /** Markdown from below the introduction on. */
  readonly lines: readonly string[];
  /** All of it, for programs. */
  readonly figures: Readonly<Record<string, unknown>>;
  /** Charts by file name. */
  readonly charts?: Readonly<Record<string, string>>;
}

/** Writes `<name>.md`, `.json` and the charts to RESULTS (bench/results), and prints the tables. */
export async function writeReport({
  name,
  files = name,
  title,
  how,
  lines,
  figures,
  charts = {},
}: Report): Promise<void> {
  const machine = describeMachine();
  const made_by = `npm run bench:${name}`;
  const introduction =
    `Made by \`${made_by}\` (bench/${name}.ts says what is measured) on ${machine.cores} cores of ${machine.cpu}, ` +
    `Node ${machine.node}; load average before ${LOAD_AVERAGE_BEFORE.toFixed(2)}. ${how} Ratios count, the times are this machine's.`;
  const text = [`# ${title}`, "", introduction, "", ...lines, ""].join("\n");
  const folder = process.env["RESULTS"] ?? "bench/results";
  const json = { made_by, machine, load_average_before: LOAD_AVERAGE_BEFORE, ...figures };
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, `${files}.md`), text);
  await writeFile(join(folder, `${files}.json`), `${JSON.stringify(json, null, 2)}\n`);
  for (const [file, svg] of Object.entries(charts)) await writeFile(join(folder, file), svg);
  console.log(text);
}
