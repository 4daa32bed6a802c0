/** A month of the pools as an operator reads it: figures in a table, then where the rent went, then what asks for something. */
import { usdText } from "#contract/mils.ts";
import type { WarmTrigger } from "#economics/always-warm.ts";
import type { PoolCost } from "#economics/cost.ts";
import { wayOutText } from "#economics/margin-floor.ts";
import type { EconomicsMonth, MonthFigures, PoolMonth } from "#economics/month.ts";
import { type Reprice, TELLING_FRAMES } from "#economics/reprice.ts";

import { durationText, tableText } from "./output.ts";

const HEADING = [
  "POOL",
  "ROLLOUTS",
  "FRAMES",
  "REVENUE",
  "ENGINE",
  "REST",
  "STARTS",
  "WORKING",
  "STARTING",
  "IDLE",
  "RENT",
  "A FRAME",
  "MARGIN",
];
const BAR_CELLS = 40;

/** `now`: a rise of the price that is announced now may begin 30 days later. */
export function economicsText(month: EconomicsMonth, now: Date): string {
  const { pools, total } = month;
  if (pools.length === 0) return `${title(month)}\nNo scheduler has looked at any pool of this database yet.`;
  const rows = pools.map((pool) => rowOf(pool.model, pool));
  if (pools.length > 1) rows.push(rowOf("all pools", total));
  const blocks = [
    `${title(month)}\n${tableText([HEADING, ...rows, publishedRow(month)])}`,
    "ENGINE and REST (fetching, encoding, storing) are means of a rollout that succeeded. WORKING, STARTING and IDLE are\n" +
      "seconds of workers, which the rent is for; A FRAME is the rent by delivered frame.",
    rentText(pools),
    ...pools.flatMap((pool) => [...alarms(pool, now), ...(month.complete ? [] : asks(pool))]),
  ];
  return blocks.join("\n\n");
}

function title({ month, complete, total, list_price_mils_per_frame: price }: EconomicsMonth): string {
  const rent = `$${round(total.gpu_usd_per_hour, 4)} an accelerator and hour`;
  return `${month}${complete ? "" : ", so far"} · ${rent} · list price ${price} mils a frame`;
}

function rowOf(name: string, figures: MonthFigures): string[] {
  const { cost } = figures;
  return [
    name,
    counted(figures.rollouts),
    counted(figures.frames),
    `$${usdText(figures.revenue_mils)}`,
    secondsText(figures.engine_wall_s_per_rollout),
    secondsText(figures.rest_s_per_rollout),
    counted(figures.cold_starts),
    durationText(figures.working_s),
    durationText(figures.starting_s),
    durationText(figures.idle_s),
    `$${cost.rent_usd.toFixed(2)}`,
    perFrameText(cost),
    marginText(cost),
  ];
}

function publishedRow({ published }: EconomicsMonth): string[] {
  const { engine_wall_s_per_rollout, rest_s_per_rollout } = published;
  const engine = [secondsText(engine_wall_s_per_rollout), secondsText(rest_s_per_rollout)];
  return ["published", "", "", "", ...engine, "", "", "", "", "", perFrameText(published), marginText(published)];
}

/** A bar of each pool's rent: what worked, what started, what idled. */
function rentText(pools: readonly PoolMonth[]): string {
  const rented = pools.filter(({ cost }) => cost.rent_usd > 0);
  if (rented.length === 0) return "No rent was paid.";
  const rows = rented.map(({ model, cost }) => {
    const { rent_usd, working_usd, starting_usd, idle_usd } = cost;
    const shares = [working_usd, starting_usd, idle_usd].map((usd) => usd / rent_usd);
    const [working, starting, idle] = shares.map((share) => `${(100 * share).toFixed(1)} %`);
    return [model, bar(shares), `working ${working}`, `starting ${starting}`, `idle ${idle}`];
  });
  return `Where the rent went\n${tableText(rows)}`;
}

function bar(shares: readonly number[]): string {
  const marks = ["█", "▒", "░"];
  let sum = 0;
  const ends = shares.map((share) => Math.round((sum += share) * BAR_CELLS));
  return ends.map((end, index) => (marks[index] ?? "").repeat(end - (ends[index - 1] ?? 0))).join("");
}

function alarms(pool: PoolMonth, now: Date): string[] {
  const { model, floor, reprice } = pool;
  const found: string[] = [];
  if (floor.kind === "below the floor") {
    const ways = floor.options.map((option) => `  - ${wayOutText(option, now)}`);
    const tells = pool.frames >= TELLING_FRAMES ? "" : " (so few frames tell little: one cold start decides)";
    found.push(
      `! ${model}: the margin of ${percent(floor.margin)} is below the floor of ${percent(floor.floor)}${tells}. Any of these leads back to it:\n${ways.join("\n")}`,
    );
  }
  if (floor.kind === "no record") {
    found.push(`! ${model}: no worker seconds are recorded (FLEET=none), so what its frames cost is not known.`);
  }
  if (floor.kind === "no revenue" && floor.rent_usd > 0) {
    found.push(`! ${model}: nothing was earned, and $${floor.rent_usd.toFixed(2)} of rent was paid.`);
  }
  for (const trigger of reprice) {
    if (trigger.trigger === "rent" || trigger.trigger === "cost_drop") {
      found.push(`~ ${model}: ${repriceText(trigger)}.`);
    }
  }
  return found;
}

/** What customers asked for and promised, as it stands now: nothing of a month that is over. */
function asks({ model, warm, reprice }: PoolMonth): string[] {
  const found: string[] = [];
  for (const trigger of reprice) {
    if (trigger.trigger === "committed_use") found.push(`~ ${model}: ${repriceText(trigger)}.`);
  }
  const met = warm.triggers.filter((trigger) => trigger.met);
  if (met.length > 0) {
    found.push(
      `~ ${model}: keeping a worker warm (about $${counted(warm.quoted_rent_usd_per_month)} a month) has ${met.length === 1 ? "a trigger" : "triggers"}:\n` +
        `${met.map((trigger) => `  - ${triggerText(trigger)}`).join("\n")}\n  dream-engine pools show ${model}`,
    );
  }
  return found;
}

export const triggerText = ({ trigger, because }: WarmTrigger): string => `${trigger}: ${because}`;

function repriceText(reprice: Exclude<Reprice, { trigger: "margin_floor" }>): string {
  if (reprice.trigger === "rent") {
    const [to, from] = [round(reprice.to_usd_per_hour, 4), round(reprice.from_usd_per_hour, 4)];
    return `an accelerator costs $${to} an hour instead of $${from}: derive the cost basis anew, and decide who gains`;
  }
  if (reprice.trigger === "cost_drop") {
    const [to, from] = [reprice.to_usd_per_frame.toFixed(6), reprice.from_usd_per_frame.toFixed(6)];
    return `a frame more costs $${to} instead of $${from}, ${percent(reprice.drop)} less: half of it is the customers', ${round(reprice.price_mils_per_frame, 3)} mils a frame`;
  }
  return `${reprice.customer} committed to ${counted(reprice.frames_per_month)} frames a month for a year: a price of their own (dream-engine prices set --customer)`;
}

const counted = (count: number): string => count.toLocaleString("en-US");
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const round = (value: number, digits: number): string => String(Number(value.toFixed(digits)));
const secondsText = (seconds: number | null): string => (seconds === null ? "–" : `${seconds.toFixed(2)} s`);

const perFrameText = ({ cost_usd_per_frame: each }: PoolCost): string => (each === null ? "–" : `$${each.toFixed(6)}`);
const marginText = ({ margin }: PoolCost): string => (margin === null ? "–" : percent(margin));
