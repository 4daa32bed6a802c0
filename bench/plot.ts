/** A small line chart as SVG, for results that docs show: a logarithmic x axis, a linear y axis from 0, a limit. */
const WIDTH = 860;
const HEIGHT = 460;
const MARGIN = { left: 70, right: 190, top: 50, bottom: 60 } as const;
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
const Y_TICKS = 8;
const LEGEND_LINE = 20;

export interface Chart {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly limit: { readonly value: number; readonly label: string };
  readonly lines: readonly { readonly name: string; readonly points: readonly (readonly [x: number, y: number])[] }[];
}

export function linesSvg({ title, xLabel, yLabel, limit, lines }: Chart): string {
  const points = lines.flatMap((line) => line.points);
  const xs = [...new Set(points.map(([x]) => x))].toSorted((a, b) => a - b);
  const [xMin, xMax] = [Math.log(xs[0] ?? 1), Math.log(xs.at(-1) ?? 2)];
  const yMax = Math.max(limit.value * 1.2, ...points.map(([, y]) => y * 1.1));
  const plotWidth = WIDTH - MARGIN.left - MARGIN.right;
  const plotHeight = HEIGHT - MARGIN.top - MARGIN.bottom;
  const xOf = (x: number): string => (MARGIN.left + (plotWidth * (Math.log(x) - xMin)) / (xMax - xMin || 1)).toFixed(1);
  const yOf = (y: number): string => (HEIGHT - MARGIN.bottom - (plotHeight * y) / yMax).toFixed(1);
  const right = MARGIN.left + plotWidth;

  const step = niceStep(yMax / Y_TICKS);
  const yTicks = Array.from({ length: Math.floor(yMax / step) + 1 }, (_, n) => n * step).map(
    (y) =>
      `<line x1="${MARGIN.left}" x2="${right}" y1="${yOf(y)}" y2="${yOf(y)}" stroke="#ddd"/>` +
      `<text x="${MARGIN.left - 8}" y="${yOf(y)}" text-anchor="end" dominant-baseline="middle">${Number(y.toFixed(2))}</text>`,
  );
  const xTicks = xs.map(
    (x) =>
      `<text x="${xOf(x)}" y="${HEIGHT - MARGIN.bottom + 20}" text-anchor="middle">${x.toLocaleString("en")}</text>`,
  );
  const drawn = lines.flatMap(({ name, points: all }, index) => {
    const color = COLORS[index % COLORS.length] ?? "black";
    const legendY = MARGIN.top + 10 + index * LEGEND_LINE;
    return [
      `<polyline fill="none" stroke="${color}" stroke-width="2" points="${all.map(([x, y]) => `${xOf(x)},${yOf(y)}`).join(" ")}"/>`,
      ...all.map(([x, y]) => `<circle cx="${xOf(x)}" cy="${yOf(y)}" r="3.5" fill="${color}"/>`),
      `<line x1="${right + 14}" x2="${right + 34}" y1="${legendY}" y2="${legendY}" stroke="${color}" stroke-width="3"/>`,
      `<text x="${right + 40}" y="${legendY}" dominant-baseline="middle">${escape(name)}</text>`,
    ];
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    `<text x="${MARGIN.left}" y="24" font-size="15" font-weight="bold">${escape(title)}</text>`,
    ...yTicks,
    ...xTicks,
    `<line x1="${MARGIN.left}" x2="${right}" y1="${yOf(limit.value)}" y2="${yOf(limit.value)}" stroke="#b00020" stroke-dasharray="6 4"/>`,
    `<text x="${right - 6}" y="${Number(yOf(limit.value)) - 7}" text-anchor="end" fill="#b00020">${escape(limit.label)}</text>`,
    ...drawn,
    `<text x="${MARGIN.left + plotWidth / 2}" y="${HEIGHT - 14}" text-anchor="middle">${escape(xLabel)}</text>`,
    `<text transform="translate(18 ${MARGIN.top + plotHeight / 2}) rotate(-90)" text-anchor="middle">${escape(yLabel)}</text>`,
    "</svg>",
    "",
  ].join("\n");
}

/** 1, 2 or 5 times a power of ten. */
function niceStep(atLeast: number): number {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= atLeast) ?? 10);
}

const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
