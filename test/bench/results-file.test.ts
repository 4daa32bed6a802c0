import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { describe, expect, onTestFinished, test } from "vitest";

import { replaceSection, writeSection } from "../../bench/results-file.ts";

const OWN = "<!-- begin gate:a -->\n\nold\n\n<!-- end gate:a -->";
const OTHERS = "<!-- begin gate:ab -->\n\nkept\n\n<!-- end gate:ab -->";
const NEW = "<!-- begin gate:a -->\n\nnew\n\n<!-- end gate:a -->";

describe("replaceSection", () => {
  test("replaces what is between its own markers and touches nothing else", () => {
    expect(replaceSection(`# R\n\n${OTHERS}\n\n${OWN}\n\nby hand\n`, "gate:a", "new")).toBe(
      `# R\n\n${OTHERS}\n\n${NEW}\n\nby hand\n`,
    );
  });

  test("puts a section that is not there yet at the end, and writing it again changes nothing", () => {
    const once = replaceSection(`# R\n\n${OTHERS}\n`, "gate:a", "\nnew\n");
    expect(once).toBe(`# R\n\n${OTHERS}\n\n${NEW}\n`);
    expect(replaceSection(once, "gate:a", "new")).toBe(once);
  });

  test("takes a body as it is, whatever a replacement pattern would make of it", () => {
    expect(replaceSection(OWN, "gate:a", "$& $1 $`")).toContain("\n$& $1 $`\n");
  });

  test.each([
    ["an end without a begin", "x <!-- end gate:a -->"],
    ["a begin without an end", "<!-- begin gate:a --> x"],
    ["two sections of the name", `${OWN}\n${OWN}`],
    ["two ends", `${OWN}\n<!-- end gate:a -->`],
    ["an end before it", `<!-- end gate:a -->\n${OWN}`],
  ])("refuses a file with %s", (_, text) => {
    expect(() => replaceSection(text, "gate:a", "new")).toThrow(/begin gate:a|end gate:a/);
  });

  test("refuses a body or a name that would break the markers", () => {
    expect(() => replaceSection("", "gate:a", OTHERS)).toThrow("no markers");
    expect(() => replaceSection("", "a --> b", "new")).toThrow("name matches");
  });
});

test("writeSection begins the file, and a second one joins the first", async () => {
  const folder = await mkdtemp(join(tmpdir(), "dream-results-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  const file = join(folder, "RESULTS.md");
  await writeSection(file, "gate:a", "first");
  await writeSection(file, "gate:b", "second");
  await writeSection(file, "gate:a", "third");
  const text = await readFile(file, "utf8");
  expect(text).toMatch(/^# Results\n/);
  expect(text.match(/<!-- begin \S+ -->\n\n.*\n/g)).toEqual([
    "<!-- begin gate:a -->\n\nthird\n",
    "<!-- begin gate:b -->\n\nsecond\n",
  ]);
});
