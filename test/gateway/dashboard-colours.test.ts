/** The colours of the operator's page, light and dark. */
import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

const colourOf = (scheme: string, name: string): string =>
  new RegExp(`--${name}: (#[0-9a-f]{6});`).exec(scheme)?.[1] ?? "missing";

/** Relative luminance of sRGB, WCAG 2.2. */
const luminance = (colour: string): number => {
  const [r = 0, g = 0, b = 0] = [1, 3, 5]
    .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

describe("the page's colours", () => {
  const css = readFileSync("src/gateway/dashboard/theme.css", "utf8");
  const [light = "", dark = ""] = css.split("prefers-color-scheme: dark");
  test.each([
    ["light", light],
    ["dark", dark],
  ])("can be told apart by whoever sees less: 4.5:1 for text (WCAG 2.2 AA), %s", (_name, scheme) => {
    const pairs = [
      ...["ink", "quiet", "accent", "good", "warn", "bad"].flatMap((text) => [
        [text, "surface"],
        [text, "ground"],
      ]),
      ["quiet", "sunk"],
      ["quiet", "bad-soft"],
      ["quiet", "warn-soft"],
      ["bad", "bad-soft"],
      ["warn", "warn-soft"],
      ["good", "calm-soft"],
    ] as const;
    for (const [text = "", ground = ""] of pairs) {
      const [darker = 0, lighter = 0] = [text, ground]
        .map((name) => luminance(colourOf(scheme, name)))
        .sort((a, b) => a - b);
      const contrast = (lighter + 0.05) / (darker + 0.05);
      expect({ text, ground, enough: contrast >= 4.5, contrast }).toMatchObject({ enough: true });
    }
  });
});
