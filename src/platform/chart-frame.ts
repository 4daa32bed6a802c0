/** What every chart of ours has, as SVG: title, axes with their labels and ticks, a legend. The lines are the caller's. */
const COLORS = [
  "#1b6ca8",
  "#d1495b",
  "#2e933c",
  "#edae49",
  "#7b4b94",
  "#00798c",
  "#8d6a4f",
  "#c25b9c",
  "#5c6b73",
  "#e07a1f",
];
const MARGIN = { left: 70, right: 215, top: 50, bottom: 60 } as const;
const TICKS = 8;
const LEGEND_LINE = 20;

export interface ChartSize {
  readonly width: number;
  readonly height: number;
  /** Of the linear vertical axis, which begins at 0. */
  readonly yMax: number;
}

/** Where things are drawn, in the picture's units. */
export interface ChartArea extends ChartSize {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
  /** `share` of the way from left to right, 0 … 1. */
  readonly xAt: (share: number) => string;
  readonly yOf: (value: number) => string;
}

export interface ChartParts {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly yStep: number;
  readonly xTicks: readonly { readonly at: string; readonly label: string }[];
  /** Above the grid, in this order. */
  readonly drawn: readonly string[];
  readonly legend: readonly { readonly name: string; readonly color: string }[];
}

export function chartArea({ width, height, yMax }: ChartSize): ChartArea {
  const { left, top } = MARGIN;
  const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
  return {
    width,
    height,
    yMax,
    left,
    right,
    top,
    bottom,
    xAt: (share) => (left + (right - left) * share).toFixed(1),
    yOf: (value) => (bottom - ((bottom - top) * value) / yMax).toFixed(1),
  };
}

/** A whole SVG document. */
export function chartSvg(area: ChartArea, parts: ChartParts): string {
  const { width, height, left, right, top, bottom, yMax, yOf } = area;
  const yTicks = Array.from({ length: Math.floor(yMax / parts.yStep) + 1 }, (_, n) => n * parts.yStep).map(
    (y) =>
      `<line x1="${left}" x2="${right}" y1="${yOf(y)}" y2="${yOf(y)}" stroke="#ddd"/>` +
      `<text x="${left - 8}" y="${yOf(y)}" text-anchor="end" dominant-baseline="middle">${Number(y.toFixed(2))}</text>`,
  );
  const xTicks = parts.xTicks.map(
    ({ at, label }) => `<text x="${at}" y="${bottom + 20}" text-anchor="middle">${escapeXml(label)}</text>`,
  );
  const legend = parts.legend.map(({ name, color }, n) => {
    const y = top + 10 + n * LEGEND_LINE;
    return (
      `<line x1="${right + 14}" x2="${right + 34}" y1="${y}" y2="${y}" stroke="${color}" stroke-width="4"/>` +
      `<text x="${right + 40}" y="${y}" dominant-baseline="middle">${escapeXml(name)}</text>`
    );
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13" fill="#222">`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    `<text x="${left}" y="24" font-size="15" font-weight="bold">${escapeXml(parts.title)}</text>`,
    ...yTicks,
    ...xTicks,
    ...parts.drawn,
    ...legend,
    `<text x="${(left + right) / 2}" y="${height - 14}" text-anchor="middle">${escapeXml(parts.xLabel)}</text>`,
    `<text transform="translate(18 ${(top + bottom) / 2}) rotate(-90)" text-anchor="middle">${escapeXml(parts.yLabel)}</text>`,
    "</svg>",
    "",
  ].join("\n");
}

export const chartColor = (n: number): string => COLORS[n % COLORS.length] ?? "black";

/** 1, 2 or 5 times a power of ten, so that at most TICKS of them fit into `max`. */
export function tickStep(max: number): number {
  const atLeast = max / TICKS;
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= atLeast) ?? 10);
}

export const escapeXml = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
