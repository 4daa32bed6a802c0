/** What happens now: alarms, the figures on top, the pools, who waits, how fast it comes out. Functions of the overview. */
import { bar, poolChart, sparkline } from "./charts.js";
import { el, empty, table } from "./elements.js";
import { count, duration, milliseconds, monthName, percent, plural, rate, usd } from "./format.js";

const LANE_NAMES = { realtime: "Realtime", bulk: "Bulk" };
const laneName = (lane) => LANE_NAMES[lane] ?? lane;
const total = (items, of) => items.reduce((sum, item) => sum + of(item), 0);

/** What of an overview the charts remember. */
export function remembered({ latency, backlog, pools }) {
  const values = {
    frames: latency.frames_per_s,
    waiting: backlog.rollouts,
    p99: laneTotal(latency, "realtime")?.answer_ms.p99,
  };
  for (const { model, desired, ready, starting, draining } of pools) {
    Object.assign(values, {
      [`${model} desired`]: desired,
      [`${model} ready`]: ready,
      [`${model} starting`]: starting,
      [`${model} draining`]: draining,
    });
  }
  return values;
}

const laneTotal = ({ lanes }, lane) => lanes.find((ends) => ends.lane === lane);

const SIGNS = { critical: "!", warning: "!", notice: "i" };

export function alarmList({ alarms, pools, backlog, books }) {
  if (alarms.length > 0) {
    return alarms.map(({ id, severity, title, detail, hint }) =>
      el(
        "div",
        { class: `alarm ${severity}`, "data-key": id },
        el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[severity]),
        el("p", null, el("strong", null, title), " ", detail, el("span", { class: "hint" }, hint)),
        el("span", { class: "severity" }, severity),
      ),
    );
  }
  const audited = books.verified_s_ago === null ? "not audited yet" : `audited ${duration(books.verified_s_ago)} ago`;
  const looked = pools.filter(({ looked_s_ago }) => looked_s_ago !== null).length;
  const queue = backlog.rollouts === 0 ? "nobody waits" : "the queue moves";
  return el(
    "div",
    { class: "alarm calm", "data-key": "calm" },
    el("span", { class: "sign", "aria-hidden": "true" }, "✓"),
    el(
      "p",
      null,
      el("strong", null, "Nothing is wrong."),
      ` ${plural(looked, "pool")} looked after, ${queue}, books ${audited}.`,
    ),
  );
}

export function tiles(overview, history, nowMs) {
  const { latency, backlog, pools, refunds, money } = overview;
  const realtime = laneTotal(latency, "realtime");
  const bulk = laneTotal(latency, "bulk");
  const held = total(pools, ({ active_samples }) => active_samples);
  const capacity = total(pools, ({ capacity_samples }) => capacity_samples);
  const oldest_s = Math.max(0, ...backlog.lanes.map((lane) => lane.oldest_s));
  const spark = (name, label) => sparkline(label, history.series(name), nowMs);
  return [
    tile(
      "Frames a second",
      rate(latency.frames_per_s),
      `${rate(latency.rollouts_per_s)} rollouts a second`,
      spark("frames", "Frames a second over the last ten minutes"),
    ),
    tile(
      "Realtime, P99",
      milliseconds(realtime?.answer_ms.p99 ?? null),
      `P50 ${milliseconds(realtime?.answer_ms.p50 ?? null)} · bulk P99 ${milliseconds(bulk?.answer_ms.p99 ?? null)}`,
      spark("p99", "Realtime P99 over the last ten minutes"),
    ),
    tile(
      "Waiting",
      `${backlog.is_more ? "> " : ""}${count(backlog.rollouts)}`,
      backlog.rollouts === 0 ? "nobody" : `oldest ${duration(oldest_s)} · ${plural(backlog.customers, "customer")}`,
      spark("waiting", "Waiting rollouts over the last ten minutes"),
    ),
    tile(
      "Batch occupancy",
      capacity === 0 ? "–" : percent(Math.min(1, held / capacity)),
      capacity === 0 ? "no worker is ready" : `${count(held)} of ${plural(capacity, "sample")}`,
      bar(`${held} of ${capacity} samples`, [{ share: capacity === 0 ? 0 : held / capacity, kind: "held" }]),
    ),
    tile(
      money === null ? "Margin" : `Margin, ${monthName(money.month).split(" ")[0]}`,
      percent(money?.total.margin ?? null),
      money === null ? "no month yet" : `${usd(money.total.revenue_usd)} earned · ${usd(money.total.rent_usd)} rent`,
      money === null || money.total.margin === null
        ? null
        : bar(`margin ${percent(money.total.margin)}`, [{ share: Math.max(0, money.total.margin), kind: "margin" }]),
    ),
    tile(
      "Refunded, last day",
      `${refunds.is_more ? "> " : ""}${usd(refunds.usd)}`,
      refunds.rollouts === 0
        ? "nothing failed"
        : `${plural(refunds.rollouts, "rollout")} · mostly ${refunds.by_reason[0].why.replaceAll("_", " ")}`,
      null,
    ),
  ];
}

const tile = (name, value, note, picture) =>
  el(
    "article",
    { class: "tile", "data-key": name },
    el("h2", null, name),
    el("p", { class: "value" }, value),
    el("p", { class: "note" }, note),
    el("div", { class: "spark" }, picture),
  );

export function poolCards({ pools }, history, nowMs) {
  if (pools.length === 0)
    return empty(
      "No model is served here. Each would have a card: its workers, why there are so many, and what waits.",
    );
  return pools.map((pool) => poolCard(pool, history, nowMs));
}

function poolCard(pool, history, nowMs) {
  const { model, name, state, why, desired, ready, starting, draining, maximum, active_samples, capacity_samples } =
    pool;
  const series = (what) => history.series(`${model} ${what}`);
  const { top, svg } = poolChart(
    `Workers of ${model} over the last ten minutes; now ${ready} ready, ${starting} starting, ${draining} draining, ${desired} wanted`,
    { desired: series("desired"), ready: series("ready"), starting: series("starting"), draining: series("draining") },
    nowMs,
  );
  const settings = [
    pool.cold_start_s === null ? null : `cold start ${duration(pool.cold_start_s)}`,
    pool.scaledown_s === null ? null : `stops after ${duration(pool.scaledown_s)}`,
    pool.always_warm_workers === null ? null : `always warm: ${pool.always_warm_workers}`,
    pool.looked_s_ago === null ? null : `limits ${pool.minimum}–${maximum}`,
  ];
  return el(
    "article",
    { class: "pool", "data-key": model },
    el("header", null, el("h3", null, name), el("code", null, model), el("span", { class: `state ${state}` }, state)),
    el("p", { class: "why" }, sentence(why)),
    pool.crash_loop === null ? null : el("p", { class: "crash" }, `Keeps dying: ${pool.crash_loop}`),
    el(
      "div",
      { class: "workers" },
      el("span", { class: "axis" }, String(top)),
      svg,
      el(
        "ul",
        { class: "legend" },
        legend("desired", desired, "wanted"),
        legend("ready", ready, "ready"),
        legend("starting", starting, "starting"),
        legend("draining", draining, "draining"),
      ),
    ),
    el(
      "div",
      { class: "held" },
      el("span", null, "Samples in flight"),
      bar(`${active_samples} of ${capacity_samples} samples`, [
        { share: capacity_samples === 0 ? 0 : active_samples / capacity_samples, kind: "held" },
      ]),
      el("span", { class: "figure" }, figureOf(active_samples, capacity_samples)),
    ),
    el(
      "p",
      { class: "note" },
      [
        pool.waiting_rollouts === 0
          ? "nothing waits"
          : `${plural(pool.waiting_rollouts, "rollout")} waiting, ${duration(pool.waiting_work_s)} of work`,
        ...settings,
      ]
        .filter((text) => text !== null)
        .join(" · "),
    ),
  );
}

/** Without a worker there is no room; what is active all the same waits for one to take it over. */
function figureOf(active, capacity) {
  if (capacity > 0) return `${active} of ${capacity}`;
  return active === 0 ? "no worker" : `${active} without a worker`;
}

const sentence = (text) => (text === "" ? "" : `${text[0].toUpperCase()}${text.slice(1)}.`);

const legend = (kind, number, name) =>
  el(
    "li",
    null,
    el("span", { class: `key ${kind}`, "aria-hidden": "true" }),
    el("b", null, String(number)),
    ` ${name}`,
  );

export function backlogPanel({ backlog, pools }) {
  const { lanes, largest, customers } = backlog;
  if (lanes.length === 0) {
    return [
      empty("Nobody waits. What does would be here by lane, and below it the ten customers with the most frames."),
    ];
  }
  const several = pools.length > 1;
  const most = Math.max(...largest.map(({ frames }) => frames));
  return [
    table(
      "Backlog by lane",
      [
        { name: "Lane" },
        ...(several ? [{ name: "Model" }] : []),
        { name: "Rollouts", number: true },
        { name: "Samples", number: true, minor: true },
        { name: "Frames", number: true },
        { name: "Oldest", number: true },
      ],
      lanes.map(({ lane, model, rollouts, samples, frames, oldest_s }) => [
        laneName(lane),
        ...(several ? [model] : []),
        count(rollouts),
        count(samples),
        count(frames),
        duration(oldest_s),
      ]),
    ),
    table(
      "Backlog by customer",
      [
        { name: customers > largest.length ? `Customer (${largest.length} of ${count(customers)})` : "Customer" },
        { name: "Realtime", number: true, minor: true },
        { name: "Bulk", number: true, minor: true },
        { name: "Frames", number: true },
        { name: "Share", minor: true },
        { name: "Oldest", number: true },
      ],
      largest.map(({ customer_id, address, realtime, bulk, frames, oldest_s }) => [
        customerName(customer_id, address),
        count(realtime),
        count(bulk),
        count(frames),
        bar(`${count(frames)} frames`, [{ share: frames / most, kind: "held" }]),
        duration(oldest_s),
      ]),
    ),
  ];
}

export const customerName = (id, address) =>
  el("span", { class: "customer", title: id }, address === "" ? id : address);

export function latencyPanel({ latency, pools }) {
  if (latency.ends.length === 0) {
    return [empty("Nothing came out in the last minutes. How long rollouts took would be here, by lane and model.")];
  }
  const all = pools.length > 1 ? latency.lanes.map((ends) => latencyRow(ends.lane, el("i", null, "all"), ends)) : [];
  return [
    table(
      "Latency by lane and model",
      [
        { name: "Lane" },
        { name: "Model" },
        { name: "Succeeded", number: true, minor: true },
        { name: "Answered P50", number: true },
        { name: "P99", number: true },
        { name: "Engine P50", number: true, minor: true },
        { name: "P99", number: true, minor: true },
      ],
      [...all, ...latency.ends.map((ends) => latencyRow(ends.lane, ends.model, ends))],
    ),
    el(
      "p",
      { class: "note" },
      "Answered: from acceptance to settlement, waiting and cold starts included. Engine: first forward to last decoded frame.",
    ),
  ];
}

const latencyRow = (lane, model, { ended, succeeded, answer_ms, engine_ms }) => [
  laneName(lane),
  model,
  `${count(succeeded)} of ${count(ended)}`,
  milliseconds(answer_ms.p50),
  milliseconds(answer_ms.p99),
  milliseconds(engine_ms.p50),
  milliseconds(engine_ms.p99),
];
