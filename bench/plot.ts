/** A small line chart as SVG, for results that docs show: a logarithmic x axis, a linear y axis from 0, a limit. */
import { chartArea, chartColor, chartSvg, escapeXml, tickStep } from "#platform/chart-frame.ts";

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
  const area = chartArea({ width: 860, height: 460, yMax });
  const { left, right, yOf } = area;
  const xOf = (x: number): string => area.xAt((Math.log(x) - xMin) / (xMax - xMin || 1));
  const limitLine = [
    `<line x1="${left}" x2="${right}" y1="${yOf(limit.value)}" y2="${yOf(limit.value)}" stroke="#b00020" stroke-dasharray="6 4"/>`,
    `<text x="${right - 6}" y="${Number(yOf(limit.value)) - 7}" text-anchor="end" fill="#b00020">${escapeXml(limit.label)}</text>`,
  ];
  const drawn = lines.flatMap(({ points: all }, n) => [
    `<polyline fill="none" stroke="${chartColor(n)}" stroke-width="2" points="${all.map(([x, y]) => `${xOf(x)},${yOf(y)}`).join(" ")}"/>`,
    ...all.map(([x, y]) => `<circle cx="${xOf(x)}" cy="${yOf(y)}" r="3.5" fill="${chartColor(n)}"/>`),
  ]);
  return chartSvg(area, {
    title,
    xLabel,
    yLabel,
    yStep: tickStep(yMax),
    xTicks: xs.map((x) => ({ at: xOf(x), label: x.toLocaleString("en") })),
    drawn: [...limitLine, ...drawn],
    legend: lines.map(({ name }, n) => ({ name, color: chartColor(n) })),
  });
}
