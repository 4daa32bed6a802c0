/**
 * How the whole system does, in one answer for the operator's page. Asked for every other second by every window that shows it,
 * so each part is kept for as long as it stays worth showing, and one answer serves all windows.
 */
import { usdText, mils } from "#contract/mils.ts";
import { addressOf } from "#keys/customers.ts";
import { readCheckExamples } from "#ledger/checks.ts";
import { readBooks } from "#ledger/books.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { eventText } from "#pools/event-text.ts";
import { listPoolEvents } from "#pools/events.ts";
import { type Pool, poolStateOf, readPools } from "#pools/pool.ts";
import { reasonText } from "#pools/reason.ts";
import {
  BACKLOG_COUNTED_MAX,
  REFUNDS_SUMMED_MAX,
  readBacklogByCustomer,
  readDispatchedByLane,
  readRefunds,
  readTraffic,
  type Refund,
  type RefundSum,
  sumRefunds,
  type Dispatched,
  type Traffic,
  type WaitingInLane,
} from "#rollouts/traffic.ts";

import { keptFor } from "../kept.ts";
import type { Models } from "../models.ts";
import { type Alarm, alarmsOf } from "./alarms.ts";
import { type Money, readMoney } from "./money.ts";

/** What moves while somebody looks. */
const LIVE_KEPT_MS = 1_000;
const REFUNDS_KEPT_MS = 2_000;
/** A month, and an audit that is a day's work, do not change within seconds. */
const BOOKS_KEPT_MS = 10_000;
const REFUNDS_SHOWN = 12;
const EVENTS_SHOWN = 12;

export interface Overview {
  /** By the gateway's clock, ISO 8601. */
  readonly at: string;
  readonly alarms: readonly Alarm[];
  readonly pools: readonly PoolView[];
  readonly backlog: BacklogView;
  readonly dispatched: readonly Dispatched[];
  readonly latency: Traffic;
  readonly refunds: RefundsView;
  readonly books: BooksView;
  /** Null where no month can be told yet. */
  readonly money: Money | null;
  readonly events: readonly EventView[];
}

export interface PoolView {
  readonly model: string;
  readonly name: string;
  readonly state: "cold" | "warming" | "warm";
  /** One sentence. */
  readonly why: string;
  /** The policy's word for it; null before the first look. */
  readonly reason_kind: string | null;
  readonly desired: number;
  readonly ready: number;
  readonly starting: number;
  readonly draining: number;
  readonly minimum: number;
  readonly maximum: number;
  readonly always_warm_workers: number | null;
  readonly waiting_rollouts: number;
  readonly waiting_work_s: number;
  /** Samples that workers hold, and how many those that are ready can. */
  readonly active_samples: number;
  readonly capacity_samples: number;
  readonly cold_start_s: number | null;
  readonly scaledown_s: number | null;
  readonly crash_loop: string | null;
  /** Null before the first look. */
  readonly looked_s_ago: number | null;
}

export interface BacklogView {
  readonly rollouts: number;
  /** Nobody counted further. */
  readonly is_more: boolean;
  readonly customers: number;
  readonly lanes: readonly WaitingInLane[];
  readonly largest: readonly {
    readonly customer_id: string;
    readonly address: string;
    readonly realtime: number;
    readonly bulk: number;
    readonly frames: number;
    readonly oldest_s: number;
  }[];
}

export interface RefundsView {
  /** Of the latest day. */
  readonly rollouts: number;
  /** Nobody counted further. */
  readonly is_more: boolean;
  readonly usd: string;
  readonly by_reason: readonly { readonly why: string; readonly rollouts: number; readonly usd: string }[];
  readonly latest: readonly {
    readonly rollout_id: string;
    readonly customer_id: string;
    readonly address: string;
    readonly model: string;
    readonly lane: string;
    readonly why: string;
    readonly message: string | null;
    readonly frames: number;
    readonly frames_delivered: number;
    readonly usd: string;
    readonly at: string;
  }[];
}

export interface BooksView {
  /** Since an audit last found nothing; null: never. */
  readonly verified_s_ago: number | null;
  readonly problems: number;
  /** Some of them, in words. */
  readonly examples: readonly string[];
  readonly unsettled: number;
  readonly oldest_unsettled_s: number;
  readonly most_overdue_s: number;
  /** Whether this gateway takes payments by Stripe. */
  readonly stripe: boolean;
  readonly payments_with_problem: number;
  /** Null: never. */
  readonly reconciled_s_ago: number | null;
  readonly stripe_disagreements: number;
  readonly unread_events: number;
}

export interface EventView {
  readonly model: string;
  readonly kind: string;
  readonly text: string;
  readonly by: string;
  readonly at: string;
}

export interface OverviewParts {
  readonly db: Database;
  readonly clock: Clock;
  readonly models: Models;
  readonly config: { readonly GPU_USD_PER_HOUR: number };
  readonly stripe: object | null;
}

export function createOverview({ db, clock, models, config, stripe }: OverviewParts): () => Promise<Overview> {
  const books = keptFor(BOOKS_KEPT_MS, clock, async () => {
    const read = await readBooks(db);
    return { ...read, examples: read.problems > 0 ? await readCheckExamples(db) : [] };
  });
  const money = keptFor(BOOKS_KEPT_MS, clock, () => readMoney(db, config.GPU_USD_PER_HOUR, new Date(clock.now())));
  const refunds = keptFor(REFUNDS_KEPT_MS, clock, () => Promise.all([readRefunds(db, REFUNDS_SHOWN), sumRefunds(db)]));
  const backlog = keptFor(LIVE_KEPT_MS, clock, () => readBacklogByCustomer(db));
  const traffic = keptFor(LIVE_KEPT_MS, clock, () => readTraffic(db));
  const live = keptFor(LIVE_KEPT_MS, clock, () =>
    Promise.all([
      readPools(db),
      readDispatchedByLane(db),
      listPoolEvents(db, { model: null, kinds: null, since: null, limit: EVENTS_SHOWN }),
    ]),
  );

  async function overview(): Promise<Overview> {
    const [[pools, dispatched, events], waiting, latency, [latest, sums], read, month] = await Promise.all([
      live(),
      backlog(),
      traffic(),
      refunds(),
      books(),
      money(),
    ]);
    const nowMs = clock.now();
    const secondsSince = (epochS: number): number | null => (epochS === 0 ? null : Math.max(0, nowMs / 1000 - epochS));
    const seen = {
      at: new Date(nowMs).toISOString(),
      pools: poolViews(pools, models, nowMs),
      backlog: {
        rollouts: waiting.rollouts,
        is_more: waiting.rollouts >= BACKLOG_COUNTED_MAX,
        customers: waiting.customers,
        lanes: waiting.lanes,
        largest: waiting.largest.map(({ email, signup_email, ...customer }) => ({
          ...customer,
          address: addressOf({ email, signup_email }),
        })),
      },
      dispatched,
      latency,
      refunds: refundsView(latest, sums),
      books: {
        verified_s_ago: secondsSince(read.verified_at_s),
        problems: read.problems,
        examples: read.examples,
        unsettled: read.unsettled,
        oldest_unsettled_s: read.oldest_unsettled_s,
        most_overdue_s: read.most_overdue_s,
        stripe: stripe !== null,
        payments_with_problem: read.payments_with_problem,
        reconciled_s_ago: secondsSince(read.reconciled_at_s),
        // What waits for an operator is counted as payments.
        stripe_disagreements: Object.entries(read.disagreements).reduce(
          (sum, [kind, number]) => sum + (kind === "not_credited" ? 0 : number),
          0,
        ),
        unread_events: read.unread_events,
      },
      money: month,
      events: events.map((event) => ({
        model: event.model,
        kind: event.kind,
        text: eventText(event),
        by: event.by,
        at: event.at.toISOString(),
      })),
    } satisfies Omit<Overview, "alarms">;
    return { ...seen, alarms: alarmsOf(seen) };
  }
  return keptFor(LIVE_KEPT_MS, clock, overview, 0);
}

/** The models that this gateway serves, and what else a scheduler looks after. */
function poolViews(pools: readonly Pool[], models: Models, nowMs: number): PoolView[] {
  const names = new Map(models.all.map(({ slug, manifest }) => [slug, manifest.catalogue.name]));
  const all = new Set([...names.keys(), ...pools.map(({ model }) => model)]);
  return [...all].sort().map((model) =>
    poolView(
      model,
      names.get(model) ?? model,
      pools.find((pool) => pool.model === model),
      nowMs,
    ),
  );
}

function poolView(model: string, name: string, pool: Pool | undefined, nowMs: number): PoolView {
  return {
    model,
    name,
    state: poolStateOf(pool, nowMs),
    why: pool ? reasonText(pool.reason) : "no scheduler has looked at it yet",
    reason_kind: pool?.reason.kind ?? null,
    desired: pool?.desired ?? 0,
    ready: pool?.ready ?? 0,
    starting: pool?.starting ?? 0,
    draining: pool?.draining ?? 0,
    minimum: pool?.minimum ?? 0,
    maximum: pool?.maximum ?? 0,
    always_warm_workers: pool?.always_warm_workers ?? null,
    waiting_rollouts: pool?.waiting_rollouts ?? 0,
    waiting_work_s: pool?.waiting_work_s ?? 0,
    active_samples: pool?.active_samples ?? 0,
    capacity_samples: pool ? (pool.ready + pool.draining) * pool.samples_per_worker : 0,
    cold_start_s: pool?.cold_start_s ?? null,
    scaledown_s: pool?.scaledown_s ?? null,
    crash_loop: pool?.crash_loop ?? null,
    looked_s_ago: pool ? Math.max(0, (nowMs - pool.looked_at.getTime()) / 1000) : null,
  };
}

function refundsView(latest: readonly Refund[], sums: readonly RefundSum[]): RefundsView {
  const rollouts = sums.reduce((total, sum) => total + sum.rollouts, 0);
  return {
    rollouts,
    is_more: rollouts >= REFUNDS_SUMMED_MAX,
    usd: usdText(mils(sums.reduce((total, { refunded_mils }) => total + refunded_mils, 0n))),
    by_reason: sums.map(({ why, rollouts, refunded_mils }) => ({ why, rollouts, usd: usdText(refunded_mils) })),
    latest: latest.map((refund) => ({
      rollout_id: refund.rollout_id,
      customer_id: refund.customer_id,
      address: addressOf(refund),
      model: refund.model,
      lane: refund.lane,
      why: refund.error_code ?? refund.status,
      message: refund.error_message,
      frames: refund.frames,
      frames_delivered: refund.frames_delivered,
      usd: usdText(refund.refunded_mils),
      at: refund.finished_at.toISOString(),
    })),
  };
}
