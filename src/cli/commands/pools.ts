/** `dream-engine pools`: what the scheduler sees and wants, why, and what operators decide and note about a pool. */
import { Argument, type Command, InvalidArgumentError, Option } from "commander";

import { WARM_TRIGGERS } from "#economics/always-warm.ts";
import { decideAlwaysWarm, noteCommitment, noteComplaint } from "#economics/noted.ts";
import { readPools } from "#pools/pool.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withBy } from "../operator.ts";
import { visible } from "../output.ts";
import { overviewText, poolsText, readOverview, requirePool } from "../pools-report.ts";
import { printJson } from "../print.ts";
import { UserError } from "../user-error.ts";
import { requireCustomer } from "./credits.ts";

interface ByOptions {
  readonly note: string;
  readonly by?: string;
}

interface WarmOptions extends ByOptions {
  readonly workers?: number;
  readonly why?: (typeof WARM_TRIGGERS)[number];
}

interface CommitmentOptions extends ByOptions {
  readonly customer: string;
  readonly frames: number;
  readonly months: number;
  readonly asksWarm?: true;
}

const WORKERS_MAX = 64;
const FRAMES_MAX = 1_000_000_000_000;
/** Events are kept for 400 days (pools/events.ts); a longer commitment is recorded anew each year. */
const MONTHS_MAX = 12;

export function addPools(program: Command): void {
  const pools = program
    .command("pools")
    .description("worker pools: what the scheduler sees and wants, and why")
    .option("--json", "print JSON on stdout")
    .action(list);
  pools
    .command("show")
    .description("one pool: its work and workers, whether to keep one warm, and what happened to it")
    .argument("<model>", "slug of the pool")
    .option("--json", "print JSON on stdout")
    .action(show);
  withBy(
    pools
      .command("always-warm")
      .description("keep workers whatever comes, or stop doing so; the scheduler heeds it at its next look")
      .argument("<model>", "slug of the pool")
      .addArgument(new Argument("<on|off>").choices(["on", "off"]))
      .option("--workers <n>", "how many; with on", whole(1, WORKERS_MAX))
      .addOption(new Option("--why <trigger>", "which of the policy's triggers; with on").choices(WARM_TRIGGERS))
      .requiredOption("--note <text>", "what was decided by, in a line; kept on record"),
  ).action(alwaysWarm);
  withBy(
    pools
      .command("complaint")
      .description("record that a customer complained about cold starts in writing: a trigger for always-warm")
      .argument("<model>", "slug of the pool")
      .requiredOption("--customer <id|email>", "cus_… or an e-mail address")
      .requiredOption("--note <text>", "where it is written, or what it says"),
  ).action(complaint);
  withBy(
    pools
      .command("commitment")
      .description("record how many frames a month a customer commits to: a trigger for always-warm and for the price")
      .argument("<model>", "slug of the pool")
      .requiredOption("--customer <id|email>", "cus_… or an e-mail address")
      .requiredOption("--frames <n>", "a month; 0 ends the commitment before", whole(0, FRAMES_MAX))
      .option("--months <n>", "for how long", whole(1, MONTHS_MAX), 12)
      .option("--asks-warm", "a warm pool is part of the deal")
      .requiredOption("--note <text>", "where it is written"),
  ).action(commitment);
}

async function list({ json }: { readonly json?: true }): Promise<void> {
  const pools = await withDatabase(({ db }) => readPools(db));
  if (json) printJson(pools);
  else console.log(visible(poolsText(pools, new Date())));
}

/** `pools --json show` and `pools show --json` alike: the option of the group reads the word first. */
async function show(model: string, _options: unknown, command: Command): Promise<void> {
  const now = new Date();
  const overview = await withDatabase(({ db }, config) => readOverview(db, model, config.GPU_USD_PER_HOUR, now));
  if (command.optsWithGlobals<{ json?: true }>().json) printJson(overview);
  else console.log(visible(overviewText(overview, now)));
}

async function alwaysWarm(model: string, state: "on" | "off", options: WarmOptions): Promise<void> {
  const { workers, why, note } = options;
  if (state === "on" && (workers === undefined || why === undefined)) {
    throw new UserError(`Expected --workers <n> and --why ${WARM_TRIGGERS.join("|")} with on.`);
  }
  if (state === "off" && (workers !== undefined || why !== undefined)) {
    throw new UserError("Expected neither --workers nor --why with off: a note says why.");
  }
  const by = operatorOf(options);
  const lines = await withDatabase(async ({ db }, config) => {
    const { pool, month } = await readOverview(db, model, config.GPU_USD_PER_HOUR, new Date());
    const { warm } = month;
    const trigger = warm.triggers.find((one) => one.trigger === why);
    const rent = warm.quoted_rent_usd_per_month * (workers ?? 0);
    await decideAlwaysWarm(db, {
      model,
      by,
      workers: state === "on" ? (workers ?? null) : null,
      trigger: why ?? null,
      note,
      facts: trigger ? { rent_usd_per_month: rent, trigger_met: trigger.met, because: trigger.because } : {},
    });
    if (state === "off") return [`${model}: always-warm is off.`];
    return [
      `${model}: ${workers} always warm, about $${rent.toLocaleString("en-US")} a month. To undo: pools always-warm ${model} off`,
      ...(trigger?.met ? [] : [`Note that the trigger is not met: ${trigger?.because ?? ""}.`]),
      ...((workers ?? 0) > pool.maximum ? [`Only ${pool.maximum} will be: that is the pool's maximum (WORKERS).`] : []),
    ];
  });
  for (const line of lines) console.log(visible(line));
}

async function complaint(model: string, options: ByOptions & { readonly customer: string }): Promise<void> {
  const { customer, paying } = await withDatabase(async ({ db }) => {
    await requirePool(db, model);
    const customer = await requireCustomer(db, options.customer);
    return { customer, ...(await noteComplaint(db, { model, by: operatorOf(options), customer, note: options.note })) };
  });
  console.log(
    paying
      ? `Recorded: ${customer} complained about cold starts of ${model}. See: pools show ${model}`
      : `Recorded, and it is no trigger: ${customer} has not paid for a frame yet.`,
  );
}

async function commitment(model: string, options: CommitmentOptions): Promise<void> {
  const { frames, months, asksWarm, note } = options;
  const customer = await withDatabase(async ({ db }) => {
    await requirePool(db, model);
    const customer = await requireCustomer(db, options.customer);
    const terms = { customer, frames_per_month: frames, months, asks_warm: asksWarm === true, note };
    await noteCommitment(db, { model, by: operatorOf(options), ...terms });
    return customer;
  });
  console.log(
    frames === 0
      ? `Recorded: ${customer} is committed to nothing any more.`
      : `Recorded: ${customer} commits to ${frames.toLocaleString("en-US")} frames a month for ${months} months. See: pools show ${model}`,
  );
}

const whole =
  (min: number, max: number) =>
  (text: string): number => {
    const value = Number(text);
    if (/^\d{1,15}$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}`);
  };
