import { readFileSync } from "node:fs";

import { expect, test } from "vitest";

import { SETTINGS } from "#platform/config.ts";

/** The table of docs/operations.md, as it must stand there. */
function settingsTable(): string {
  const rows = Object.entries(SETTINGS).map(([name, { meaning, fallback, expected }]) => {
    const cells = [`\`${name}\``, meaning, fallback === undefined ? "unset" : `\`${fallback}\``, expected];
    return `| ${cells.join(" | ")} |`;
  });
  return ["| variable | meaning | default | accepts |", "|---|---|---|---|", ...rows].join("\n");
}

test("docs/operations.md lists every setting as the code has it", () => {
  expect(readFileSync("docs/operations.md", "utf8")).toContain(settingsTable());
});
