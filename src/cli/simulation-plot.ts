/** The pool's size over time as SVG, one step line a policy, and the workers that are busy under the first one as an area. */
import { chartArea, chartColor, chartSvg, tickStep } from "#platform/chart-frame.ts";
import type { Comparison } from "#scheduler/simulate/compare.ts";

const BUSY_FILL = "#cfe3f1";

export function simulationSvg({ timelines }: Comparison, title: string): string {
  const slices = timelines[0]?.timeline.workers.length ?? 1;
  const hours = (slices * (timelines[0]?.timeline.slice_s ?? 1)) / 3600;
  const yMax = Math.max(1, ...timelines.map(({ timeline }) => timeline.workers.reduce((a, b) => Math.max(a, b), 0)));
  const area = chartArea({ width: 960, height: 420, yMax });
  const { xAt, yOf } = area;
  const steps = (series: Float64Array): string =>
    Array.from(series, (value, n) => `${xAt(n / slices)},${yOf(value)} ${xAt((n + 1) / slices)},${yOf(value)}`).join(
      " ",
    );
  const busy = timelines[0]?.timeline.busy ?? new Float64Array();
  const lines = timelines.map(
    ({ timeline }, n) =>
      `<polyline fill="none" stroke="${chartColor(n)}" stroke-width="${n === 0 ? 2 : 1.2}" points="${steps(timeline.workers)}"/>`,
  );
  const xStep = tickStep(hours);
  return chartSvg(area, {
    title,
    xLabel: "hours",
    yLabel: "workers",
    // There is no half of a worker.
    yStep: Math.max(1, tickStep(yMax)),
    xTicks: Array.from({ length: Math.floor(hours / xStep) + 1 }, (_, n) => n * xStep).map((hour) => ({
      at: xAt(hour / hours),
      label: String(Number(hour.toPrecision(6))),
    })),
    drawn: [
      `<polygon fill="${BUSY_FILL}" points="${xAt(0)},${yOf(0)} ${steps(busy)} ${xAt(1)},${yOf(0)}"/>`,
      // The policy under test is drawn last, above the others.
      ...lines.toReversed(),
    ],
    legend: [
      ...timelines.map(({ policy }, n) => ({ name: policy, color: chartColor(n) })),
      { name: "busy under the first", color: BUSY_FILL },
    ],
  });
}
