/** What it costs and earns, what was given back, and whether the books say so. Functions of the overview. */
import { bar } from "./charts.js";
import { el, empty, table } from "./elements.js";
import { count, duration, percent, plural, secondsBetween, usd } from "./format.js";
import { customerName } from "./panels.js";

export function refundsPanel({ refunds, at }) {
  if (refunds.latest.length === 0) {
    return [
      empty("Nothing was refunded. Each rollout that failed, expired or was called off would be here with its reason."),
    ];
  }
  return [
    refunds.by_reason.length === 0
      ? null
      : el(
          "ul",
          { class: "chips", "aria-label": "Refunds of the last day by reason" },
          refunds.by_reason.map(({ why, rollouts, usd: sum }) =>
            el("li", null, el("b", null, count(rollouts)), ` ${words(why)} · ${usd(sum)}`),
          ),
        ),
    table(
      "Refunds of late",
      [
        { name: "Ago", number: true },
        { name: "Rollout" },
        { name: "Customer", minor: true },
        { name: "Why", fill: true },
        { name: "Refunded", number: true },
      ],
      refunds.latest.map((refund) => [
        duration(secondsBetween(refund.at, at)),
        el(
          "a",
          {
            href: `/v1/admin/rollouts/${refund.rollout_id}`,
            "data-rollout": refund.rollout_id,
            title: refund.rollout_id,
          },
          shortId(refund.rollout_id),
        ),
        customerName(refund.customer_id, refund.address),
        [
          el("span", null, words(refund.why)),
          refund.message === null ? null : el("span", { class: "message", title: refund.message }, refund.message),
        ].filter((part) => part !== null),
        usd(refund.usd),
      ]),
    ),
  ];
}

const words = (code) => code.replaceAll("_", " ");
/** Enough to tell two apart by eye; the link has the whole. */
const shortId = (id) => `${id.slice("rollout_".length, "rollout_".length + 8)}…`;

export function moneyPanel({ money }) {
  if (money === null || money.pools.length === 0) {
    return [empty("Nothing was earned or rented this month. Revenue, rent and margin would be here by model.")];
  }
  return [
    table(
      "Revenue, rent and margin of this month by model",
      [
        { name: "Model" },
        { name: "Frames", number: true },
        { name: "Revenue", number: true },
        { name: "Rent", number: true },
        { name: "Cost a frame", number: true, minor: true },
        { name: "Margin", number: true },
      ],
      [...money.pools, ...(money.pools.length > 1 ? [money.total] : [])].map(moneyRow),
    ),
    money.total.margin === null
      ? null
      : bar(`rent ${usd(money.total.rent_usd)} of revenue ${usd(money.total.revenue_usd)}`, [
          { share: Math.min(1, Math.max(0, 1 - money.total.margin)), kind: "rent" },
          { share: Math.max(0, money.total.margin), kind: "margin" },
        ]),
    el(
      "p",
      { class: "note" },
      `An accelerator at $${money.gpu_usd_per_hour.toFixed(2)} an hour, each second of a worker paid: working, starting or idle. dream-engine economics has it whole.`,
    ),
  ];
}

export function booksPanel({ books }) {
  const never = books.verified_s_ago === null;
  const rows = [
    books.problems > 0
      ? check("bad", "Ledger", `${plural(books.problems, "disagreement")} at the last audit`)
      : check(
          never ? "open" : "good",
          "Ledger",
          never
            ? "not audited yet; the scheduler does it daily"
            : `balanced, audited ${duration(books.verified_s_ago)} ago`,
        ),
    check(
      books.most_overdue_s > 60 ? "bad" : "good",
      "Settlement",
      books.unsettled === 0
        ? "every charge is settled"
        : `${plural(books.unsettled, "rollout")} under way, the first charged ${duration(books.oldest_unsettled_s)} ago`,
    ),
    check(
      books.payments_with_problem + books.stripe_disagreements + books.unread_events > 0
        ? "bad"
        : books.reconciled_s_ago === null
          ? "open"
          : "good",
      "Payments",
      books.payments_with_problem + books.stripe_disagreements + books.unread_events > 0
        ? `${books.payments_with_problem} not credited, ${books.stripe_disagreements} differ, ${books.unread_events} unread`
        : books.reconciled_s_ago === null
          ? books.stripe
            ? "never compared with Stripe"
            : "no Stripe here: credits are granted by hand"
          : `agree with Stripe, compared ${duration(books.reconciled_s_ago)} ago`,
    ),
  ];
  const examples = books.examples.map((example) => el("li", null, example));
  return [
    el("ul", { class: "checks" }, rows),
    examples.length === 0 ? null : el("ul", { class: "examples" }, examples),
  ];
}

const moneyRow = ({ model, frames, revenue_usd, rent_usd, cost_usd_per_frame, margin }) => [
  model,
  count(frames),
  usd(revenue_usd),
  usd(rent_usd),
  cost_usd_per_frame === null ? "–" : `$${cost_usd_per_frame.toFixed(6)}`,
  percent(margin),
];

const MARKS = { good: "✓", bad: "✗", open: "·" };

const check = (kind, name, text) =>
  el(
    "li",
    { class: kind },
    el("span", { class: "mark-of", "aria-hidden": "true" }, MARKS[kind]),
    el("b", null, name),
    ` ${text}`,
  );

export function eventsPanel({ events, at }) {
  if (events.length === 0)
    return [
      empty(
        "No pool changed its size yet. Each start and stop would be here with its reason, and what operators decided.",
      ),
    ];
  return [
    el(
      "ol",
      { class: "events" },
      events.map(({ model, kind, text, by, at: when }) =>
        el(
          "li",
          { class: kind },
          el("time", { datetime: when }, duration(secondsBetween(when, at))),
          el(
            "span",
            null,
            el("b", null, model),
            ` ${kind === "scaled" ? "" : `${words(kind)}${text === "" ? "" : ": "}`}${text}`,
            kind === "scaled" ? null : el("span", { class: "quiet" }, ` by ${by}`),
          ),
        ),
      ),
    ),
  ];
}
