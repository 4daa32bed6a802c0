/** What an operator has to look at before anything else: pure, of what the overview shows. The worst first. */
import type { Overview } from "./overview.ts";

export interface Alarm {
  /** Names it while it lasts. */
  readonly id: string;
  /** `critical` costs customers money or service now, `warning` will, `notice` is worth knowing. */
  readonly severity: "critical" | "warning" | "notice";
  readonly title: string;
  /** What was seen, in numbers. */
  readonly detail: string;
  /** What to do about it. */
  readonly hint: string;
}

/** As the alerts of the same names (infra/prometheus/alerts.yml). */
const UNSETTLED_OVERDUE_S = 60;
const VERIFIED_WITHIN_S = 2 * 86_400;
/** A leader looks at each pool once a second, and another one takes over within five. */
const LOOKED_WITHIN_S = 15;
/** A queue that has not moved for so long, or for two cold starts, does not wait for a worker any more. */
const STUCK_S_MIN = 60;
const COLD_STARTS_PATIENCE = 2;

export function alarmsOf(overview: Omit<Overview, "alarms">): readonly Alarm[] {
  const found = [
    ...ofBooks(overview.books),
    ...overview.pools.flatMap((pool) => [...ofPool(pool)]),
    ...ofQueue(overview),
    ...ofMargin(overview.money),
  ];
  const order = ["critical", "warning", "notice"];
  return found.sort((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
}

function* ofBooks(books: Overview["books"]): Generator<Alarm> {
  if (books.problems > 0) {
    yield {
      id: "books_differ",
      severity: "critical",
      title: "The books do not balance",
      detail: `the last audit found ${count(books.problems, "disagreement")}${books.examples[0] === undefined ? "" : `, such as: ${books.examples[0]}`}`,
      hint: "dream-engine ledger verify names each; keep a copy of the database first, nothing rewrites the ledger",
    };
  }
  if (books.most_overdue_s > UNSETTLED_OVERDUE_S) {
    yield {
      id: "unsettled",
      severity: "critical",
      title: "Charges are not settled",
      detail: `a rollout's deadline passed ${duration(books.most_overdue_s)} ago, and it is neither ended nor refunded`,
      hint: "the sweep does this within seconds: see that a scheduler leads and what its log says",
    };
  }
  if (books.verified_s_ago !== null && books.verified_s_ago > VERIFIED_WITHIN_S) {
    yield {
      id: "audit_old",
      severity: "warning",
      title: "The books were not audited lately",
      detail: `an audit last found nothing ${duration(books.verified_s_ago)} ago`,
      hint: "the scheduler that leads does it daily: look at its log, or run dream-engine ledger verify",
    };
  }
  const payments = books.payments_with_problem + books.stripe_disagreements + books.unread_events;
  if (payments > 0) {
    yield {
      id: "payments",
      severity: "warning",
      title: "Payments wait for a decision",
      detail: `${count(books.payments_with_problem, "payment")} not credited, ${count(books.stripe_disagreements, "disagreement")} with Stripe, ${count(books.unread_events, "event")} not read`,
      hint: "dream-engine billing reconcile names each of them and what it is about",
    };
  }
}

function* ofPool(pool: Overview["pools"][number]): Generator<Alarm> {
  const { model, looked_s_ago } = pool;
  if (looked_s_ago !== null && looked_s_ago > LOOKED_WITHIN_S) {
    yield {
      id: `not_looked_at ${model}`,
      severity: "critical",
      title: `Nobody looks after ${model}`,
      detail: `its scheduler last looked ${duration(looked_s_ago)} ago: nothing is dispatched to it, started or stopped`,
      hint: "see that a scheduler runs and reaches PostgreSQL; a standby takes over within seconds",
    };
  }
  if (pool.crash_loop !== null) {
    yield {
      id: `crash_loop ${model}`,
      severity: pool.ready === 0 ? "critical" : "warning",
      title: `Workers of ${model} keep dying`,
      detail: pool.crash_loop,
      hint: "they are started again with growing pauses; the reason is their last line, their log has the rest",
    };
  }
  if (pool.reason_kind === "maximum") {
    yield {
      id: `maximum ${model}`,
      severity: "notice",
      title: `${model} is at its maximum`,
      detail: pool.why,
      hint: "a larger WORKERS lets it grow",
    };
  }
}

function* ofQueue({ backlog, latency, pools }: Omit<Overview, "alarms">): Generator<Alarm> {
  for (const model of new Set(backlog.lanes.map((lane) => lane.model))) {
    const pool = pools.find((one) => one.model === model);
    const patience_s = Math.max(STUCK_S_MIN, COLD_STARTS_PATIENCE * (pool?.cold_start_s ?? 0));
    const lanes = backlog.lanes.filter((lane) => lane.model === model);
    const oldest_s = Math.max(...lanes.map((lane) => lane.oldest_s));
    const last_s = Math.min(...latency.ends.filter((ends) => ends.model === model).map((ends) => ends.last_s));
    // Beyond the window nothing is known but that nothing came out in it.
    const silent_s = Math.min(last_s, latency.window_s);
    if (oldest_s <= patience_s || silent_s < Math.min(patience_s, latency.window_s)) continue;
    const rollouts = lanes.reduce((sum, lane) => sum + lane.rollouts, 0);
    yield {
      id: `stuck ${model}`,
      severity: "critical",
      title: `The queue of ${model} does not move`,
      detail: `${count(rollouts, "rollout")} ${rollouts === 1 ? "waits" : "wait"}, the first for ${duration(oldest_s)}; nothing came out for ${last_s === Number.POSITIVE_INFINITY ? `more than ${duration(latency.window_s)}` : duration(last_s)}`,
      hint: "see the pool's state: no worker starts, or those that run do not finish; their log says why",
    };
  }
}

function* ofMargin(money: Overview["money"]): Generator<Alarm> {
  for (const { model, margin, floor, ways_out } of money?.below_floor ?? []) {
    yield {
      id: `margin ${model}`,
      severity: "warning",
      title: `${model} earns less than the floor`,
      detail: `margin ${percent(margin)} this month, the floor is ${percent(floor)}`,
      hint: ways_out.join("; or "),
    };
  }
}

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? "" : "s"}`;
const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

function duration(s: number): string {
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7_200) return `${Math.round(s / 60)} min`;
  return s < 172_800 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} days`;
}
