/** Small charts of the history, as SVG that stretches; what they show is also said in words. */
import { el } from "./elements.js";
import { HISTORY_MS } from "./history.js";

const WIDTH = 300;
const HEIGHT = 60;
/** Longer without a point: the page was hidden or the server away, and nobody knows what was. */
const GAP_MS = 15_000;
/** A line for each worker, while they can be told apart. */
const GRID_LINES_MAX = 10;

const x = (at, nowMs) => (((at - nowMs) / HISTORY_MS + 1) * WIDTH).toFixed(1);
const y = (value, top) => (HEIGHT - (value / top) * (HEIGHT - 3) - 1).toFixed(1);

/** Runs of points without gaps and without nulls. */
function runsOf(series) {
  const runs = [];
  let previous = null;
  for (const point of series) {
    if (point.value === null) {
      previous = null;
      continue;
    }
    if (previous === null || point.at - previous.at > GAP_MS) runs.push([]);
    runs[runs.length - 1].push(point);
    previous = point;
  }
  return runs;
}

/** A value holds until the next one is seen. */
const stepsOf = (run, nowMs, top) =>
  run
    .map(
      ({ at, value }, index) => `${index === 0 ? "M" : "H"}${x(at, nowMs)}${index === 0 ? "," : "V"}${y(value, top)}`,
    )
    .join("");

const linePath = (series, nowMs, top) =>
  runsOf(series)
    .map((run) => stepsOf(run, nowMs, top))
    .join("");

const areaPath = (series, nowMs, top) =>
  runsOf(series)
    .map((run) => `${stepsOf(run, nowMs, top)}V${HEIGHT}H${x(run[0].at, nowMs)}Z`)
    .join("");

const chart = (label, ...shapes) =>
  el(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    shapes,
  );

/** One quantity: an area with a line on top. */
export function sparkline(label, series, nowMs) {
  // A little room above, so that what stays the same is a line and no block.
  const top = Math.max(1e-9, ...series.map(({ value }) => value ?? 0)) * 1.2;
  return chart(
    label,
    el("path", { class: "area", d: areaPath(series, nowMs, top) }),
    el("path", { class: "line", d: linePath(series, nowMs, top) }),
  );
}

/** Ready, starting and draining workers on top of each other, and the number wanted as a line. */
export function poolChart(label, { desired, ready, starting, draining }, nowMs) {
  const all = stacked(ready, starting, draining);
  const top = Math.max(1, ...[...all, ...desired].map(({ value }) => value ?? 0));
  const levels = top > GRID_LINES_MAX ? [] : Array.from({ length: top - 1 }, (_unused, index) => index + 1);
  return {
    top,
    svg: chart(
      label,
      levels.map((level) => el("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(level, top), y2: y(level, top) })),
      el("path", { class: "draining", d: areaPath(all, nowMs, top) }),
      el("path", { class: "starting", d: areaPath(stacked(ready, starting), nowMs, top) }),
      el("path", { class: "ready", d: areaPath(ready, nowMs, top) }),
      el("path", { class: "line desired", d: linePath(desired, nowMs, top) }),
    ),
  };
}

const stacked = (...parts) =>
  parts[0].map(({ at }, index) => {
    const values = parts.map((part) => part[index].value);
    return { at, value: values.includes(null) ? null : values.reduce((total, value) => total + value, 0) };
  });

/** A share of a whole. `parts`: {share: 0…1, kind}, drawn beside each other. */
export function bar(label, parts) {
  let from = 0;
  return el(
    "svg",
    { class: "bar", role: "img", "aria-label": label },
    el("rect", { class: "rest", width: "100%", height: "100%" }),
    parts.map(({ share, kind }) => {
      const width = Math.min(1 - from, share);
      const rect = el("rect", {
        class: kind,
        x: `${from * 100}%`,
        width: `${Math.max(0, width) * 100}%`,
        height: "100%",
      });
      from += width;
      return rect;
    }),
  );
}
