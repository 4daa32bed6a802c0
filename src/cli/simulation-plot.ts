/** The pool's size over time as SVG, one step line a policy, and the workers that are busy under the first one as an area. */
import type { Comparison } from "#scheduler/simulate/compare.ts";

const WIDTH = 960;
const HEIGHT = 420;
const MARGIN = { left: 60, right: 210, top: 50, bottom: 50 } as const;
const COLORS = ["#1b6ca8", "#2e933c", "#d1495b", "#edae49"];
const Y_TICKS = 6;
const X_TICKS = 8;
const LEGEND_LINE = 20;
const BUSY_FILL = "#cfe3f1";

export function simulationSvg({ timelines }: Comparison, title: string): string {
  const slices = timelines[0]?.timeline.workers.length ?? 1;
  const slice_h = (timelines[0]?.timeline.slice_s ?? 1) / 3600;
  const yMax = Math.max(1, ...timelines.map(({ timeline }) => timeline.workers.reduce((a, b) => Math.max(a, b), 0)));
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const xOf = (slice: number): string => (MARGIN.left + ((right - MARGIN.left) * slice) / slices).toFixed(1);
  const yOf = (workers: number): string => (bottom - ((bottom - MARGIN.top) * workers) / yMax).toFixed(1);
  const steps = (series: Float64Array): string =>
    Array.from(series, (value, n) => `${xOf(n)},${yOf(value)} ${xOf(n + 1)},${yOf(value)}`).join(" ");

  const step = Math.max(1, niceStep(yMax / Y_TICKS));
  const yTicks = Array.from({ length: Math.floor(yMax / step) + 1 }, (_, n) => n * step).map(
    (y) =>
      `<line x1="${MARGIN.left}" x2="${right}" y1="${yOf(y)}" y2="${yOf(y)}" stroke="#ddd"/>` +
      `<text x="${MARGIN.left - 8}" y="${yOf(y)}" text-anchor="end" dominant-baseline="middle">${y}</text>`,
  );
  const hours = slices * slice_h;
  const xStep = niceStep(hours / X_TICKS);
  const xTicks = Array.from({ length: Math.floor(hours / xStep) + 1 }, (_, n) => n * xStep).map(
    (x) => `<text x="${xOf(x / slice_h)}" y="${bottom + 20}" text-anchor="middle">${Number(x.toPrecision(6))}</text>`,
  );
  // The policy under test is drawn last, above the others.
  const lines = timelines.map(
    ({ timeline }, n) =>
      `<polyline fill="none" stroke="${colorOf(n)}" stroke-width="${n === 0 ? 2 : 1.2}" points="${steps(timeline.workers)}"/>`,
  );
  const legend = timelines.map(({ policy }, n) => legendLine(n, colorOf(n), policy, right));
  const busy = timelines[0]?.timeline.busy ?? new Float64Array();
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    `<text x="${MARGIN.left}" y="24" font-size="15" font-weight="bold">${escape(title)}</text>`,
    ...yTicks,
    ...xTicks,
    `<polygon fill="${BUSY_FILL}" points="${xOf(0)},${yOf(0)} ${steps(busy)} ${xOf(slices)},${yOf(0)}"/>`,
    ...lines.toReversed(),
    ...legend,
    legendLine(timelines.length, BUSY_FILL, "busy under the first", right),
    `<text x="${(MARGIN.left + right) / 2}" y="${HEIGHT - 10}" text-anchor="middle">hours</text>`,
    `<text transform="translate(16 ${HEIGHT / 2}) rotate(-90)" text-anchor="middle">workers</text>`,
    "</svg>",
    "",
  ].join("\n");
}

const colorOf = (n: number): string => COLORS[n % COLORS.length] ?? "black";

function legendLine(n: number, color: string, text: string, right: number): string {
  const y = MARGIN.top + 10 + n * LEGEND_LINE;
  return (
    `<line x1="${right + 14}" x2="${right + 34}" y1="${y}" y2="${y}" stroke="${color}" stroke-width="4"/>` +
    `<text x="${right + 40}" y="${y}" dominant-baseline="middle">${escape(text)}</text>`
  );
}

/** 1, 2 or 5 times a power of ten. */
function niceStep(atLeast: number): number {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= atLeast) ?? 10);
}

const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
