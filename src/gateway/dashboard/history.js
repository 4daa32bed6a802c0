/**
 * What was seen over the last minutes: the server tells the present only, each window remembers for itself. Bounded by
 * number; kept over a reload of this tab, and nowhere else.
 */
export const HISTORY_MS = 600_000;
const POINTS_MAX = 600;
const STORED_AS = "dream-engine history";

/** Points are {at: epoch ms, values}; `values` has a number for each name. */
export function createHistory(storage) {
  const points = restored(storage);
  return {
    add(at, values) {
      // One answer may come twice, because windows share it; and the server's clock may have been set back.
      while (points.length > 0 && points[points.length - 1].at >= at) points.pop();
      points.push({ at, values });
      while (points.length > POINTS_MAX || points[0].at < at - HISTORY_MS) points.shift();
    },
    /** Null where that name was not seen. */
    series: (name) => points.map(({ at, values }) => ({ at, value: values[name] ?? null })),
    save() {
      try {
        storage.setItem(STORED_AS, JSON.stringify(points));
      } catch {
        // Full, or forbidden by the browser: the next load begins with nothing.
      }
    },
  };
}

function restored(storage) {
  try {
    const points = JSON.parse(storage.getItem(STORED_AS) ?? "[]");
    return Array.isArray(points) ? points.filter((point) => typeof point?.at === "number" && point.values) : [];
  } catch {
    return []; // written by another version of this page
  }
}
