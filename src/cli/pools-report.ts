/** Pools as an operator reads them: what the scheduler sees and wants, why, and whether a worker should stay warm. */
import { readMonth, type PoolMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";
import type { Sql } from "#platform/database.ts";
import { eventText } from "#pools/event-text.ts";
import { listPoolEvents, type PoolEvent } from "#pools/events.ts";
import { isLookedAfter, type Pool, readPools } from "#pools/pool.ts";
import { reasonText } from "#pools/reason.ts";
import { type PoolSettings, readPoolSettings } from "#pools/settings.ts";

import { triggerText } from "./economics-report.ts";
import { durationText, tableText } from "./output.ts";
import { UserError } from "./user-error.ts";

const EVENTS_SHOWN = 15;

/** Throws UserError that names those there are. */
export async function requirePool(sql: Sql, model: string): Promise<Pool> {
  const pools = await readPools(sql);
  const pool = pools.find((one) => one.model === model);
  if (pool) return pool;
  const known = pools.map((one) => one.model).join(", ");
  throw new UserError(
    known === ""
      ? `There is no pool ${model}: no scheduler has looked at any pool of this database yet.`
      : `There is no pool ${model}; there are: ${known}.`,
  );
}

export interface PoolOverview {
  readonly pool: Pool;
  readonly fresh: boolean;
  /** In words. */
  readonly why: string;
  readonly settings: PoolSettings | null;
  /** The running one. */
  readonly month: PoolMonth;
  /** Newest first. */
  readonly events: readonly PoolEvent[];
}

export async function readOverview(sql: Sql, model: string, gpuUsdPerHour: number, now: Date): Promise<PoolOverview> {
  const pool = await requirePool(sql, model);
  const settings = (await readPoolSettings(sql)).find((one) => one.model === model) ?? null;
  const { pools } = await readMonth(sql, { month: monthOf(now), gpuUsdPerHour }, now);
  const month = pools.find((one) => one.model === model);
  if (!month) throw new Error(`the month's figures lack the pool ${model}`);
  return {
    pool,
    fresh: isLookedAfter(pool, now.getTime()),
    why: reasonText(pool.reason),
    settings,
    month,
    events: await listPoolEvents(sql, { model, kinds: null, since: null, limit: EVENTS_SHOWN }),
  };
}

export function poolsText(pools: readonly Pool[], now: Date): string {
  if (pools.length === 0) return "No scheduler has looked at any pool of this database yet.";
  const rows = pools.map((pool) => [
    pool.model,
    pool.fleet,
    `${pool.ready}${pool.starting > 0 ? ` +${pool.starting}` : ""}`,
    String(pool.desired),
    pool.always_warm_workers === null ? "–" : String(pool.always_warm_workers),
    String(pool.waiting_rollouts),
    String(pool.active_rollouts),
    isLookedAfter(pool, now.getTime()) ? reasonText(pool.reason) : staleText(pool, now),
  ]);
  const heading = ["POOL", "FLEET", "READY", "WANTED", "WARM", "WAITING", "RUNNING", "WHY"];
  const dying = pools.filter(({ crash_loop }) => crash_loop !== null);
  return [
    tableText([heading, ...rows]),
    ...dying.map(({ model, crash_loop }) => `! ${model}: its workers keep dying: ${crash_loop}`),
  ].join("\n");
}

const staleText = ({ looked_at }: Pool, now: Date): string =>
  `nobody has looked for ${durationText((now.getTime() - looked_at.getTime()) / 1000)}: no scheduler leads`;

export function overviewText(overview: PoolOverview, now: Date): string {
  const { pool, fresh, why, settings, month, events } = overview;
  const { warm } = month;
  const always =
    pool.always_warm_workers === null
      ? "off"
      : `${pool.always_warm_workers}${settings ? `, by ${settings.set_by} on ${day(settings.set_at)} (${settings.why})` : ""}`;
  const facts: string[][] = [
    ["why", fresh ? why : staleText(pool, now)],
    [
      "workers",
      `${pool.ready} ready, ${pool.starting} starting, ${pool.draining} draining; wanted ${pool.desired}, from ${pool.minimum} to ${pool.maximum} (${pool.fleet})`,
    ],
    [
      "waiting",
      `${pool.waiting_rollouts} rollouts, ${pool.waiting_samples} samples, ${durationText(pool.waiting_work_s)} of one warm worker`,
    ],
    [
      "running",
      `${pool.active_rollouts} rollouts, ${pool.active_samples} samples; a worker takes ${pool.samples_per_worker} samples at once`,
    ],
    [
      "cold start",
      `${durationText(pool.cold_start_s)} expected; a worker goes after ${durationText(pool.scaledown_s)} without need`,
    ],
    ["always warm", always],
  ];
  if (pool.crash_loop !== null) facts.push(["crash loop", `its workers keep dying: ${pool.crash_loop}`]);
  const { margin, rent_usd } = month.cost;
  const left = margin === null ? "nothing earned" : `margin ${(100 * margin).toFixed(1)} %`;
  facts.push([
    "this month",
    `${month.frames.toLocaleString("en-US")} frames, $${rent_usd.toFixed(2)} of rent, ${left}`,
  ]);
  const triggers = warm.triggers.map((trigger) => [trigger.met ? "  met" : "  no", triggerText(trigger)]);
  const rent = warm.quoted_rent_usd_per_month.toLocaleString("en-US");
  const blocks = [
    `${pool.model}\n${tableText(facts.map(([name = "", text = ""]) => [`  ${name}`, text]))}`,
    `Keep a worker warm for good? About $${rent} a month each. An operator decides; the policy's triggers:\n${tableText(triggers)}`,
  ];
  if (events.length > 0) blocks.push(`Latest events\n${tableText(events.map(eventRow))}`);
  return blocks.join("\n\n");
}

const day = (at: Date): string => at.toISOString().slice(0, 10);

function eventRow(event: PoolEvent): string[] {
  return [`  ${event.at.toISOString().slice(0, 19).replace("T", " ")}`, event.kind, event.by, eventText(event)];
}
