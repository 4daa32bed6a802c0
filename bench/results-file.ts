/**
 * docs/RESULTS.md, in which scripts keep what they found. Each owns sections between a pair of markers that no reader
 * sees, and replaces them in place; everything else in the file stays as it is.
 */
import { strict as assert } from "node:assert";
import { readFile, writeFile } from "node:fs/promises";

import { errorCode } from "#platform/error-code.ts";

export const RESULTS_FILE = "docs/RESULTS.md";

const NEW_FILE = [
  "# Results",
  "",
  "What the project's own scripts found. Each section names the command that wrote it; the next run replaces it, so do not",
  "edit inside one. Ratios were measured side by side in one run; absolute times are those of the machine that is named.",
  "",
].join("\n");

const NAME = /^[a-z0-9][a-z0-9:-]*$/;
const markersOf = (name: string) => [`<!-- begin ${name} -->`, `<!-- end ${name} -->`] as const;

/** Writes a section, and the file if there is none. Throws when the file's markers are not whole. */
export async function writeSection(file: string, name: string, body: string): Promise<void> {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if (errorCode(error) === "ENOENT") return NEW_FILE;
    throw error;
  });
  await writeFile(file, replaceSection(text, name, body));
}

/** `name` in lower case, as `gate:pusht-small`. A section that is not there yet goes to the end. */
export function replaceSection(text: string, name: string, body: string): string {
  assert(NAME.test(name), `a section's name matches ${NAME}, not ${JSON.stringify(name)}`);
  assert(!/<!-- (begin|end) /.test(body), "a section holds no markers");
  const [begin, end] = markersOf(name);
  const section = `${begin}\n\n${body.trim()}\n\n${end}`;
  const [before = "", after, ...more] = text.split(begin);
  if (after === undefined && !text.includes(end)) return `${text.trimEnd()}\n\n${section}\n`;
  const rest = after?.split(end) ?? [];
  if (more.length > 0 || rest.length !== 2) {
    throw new Error(`expected ${begin} once and ${end} once after it; mend or delete the section by hand`);
  }
  if (before.includes(end)) throw new Error(`${end} comes before ${begin}`);
  return `${before}${section}${rest[1]}`;
}
