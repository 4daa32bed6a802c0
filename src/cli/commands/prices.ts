/** `dream-engine prices list|set|end`: the list price and customers' own, with 30 days' notice before a rise. */
import { type Command, InvalidArgumentError } from "commander";

import { type ListedPrice, pricesOf, setPrice } from "#billing/prices.ts";
import { mils, usdText } from "#contract/mils.ts";
import { momentMs } from "#keys/expiry.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withOperator } from "../operator.ts";
import { printJson, printTable } from "../print.ts";
import { UserError } from "../user-error.ts";
import { requireCustomer } from "./credits.ts";

interface ChangeOptions {
  readonly customer?: string;
  readonly from?: Date;
  readonly reason: string;
  readonly overrideNotice?: string;
  readonly operator?: string;
  readonly json?: true;
}

interface SetOptions extends ChangeOptions {
  readonly list?: true;
  readonly free?: true;
}

export function addPrices(program: Command): void {
  const prices = program.command("prices").description("what a frame costs: the list price, and customers' own");
  prices
    .command("list")
    .description("past, in force and scheduled; one customer's own beside the list's")
    .option("--customer <id|email>", "cus_… or an e-mail address")
    .option("--json", "print JSON on stdout")
    .action(list);
  withChange(
    prices
      .command("set")
      .description("a new price from a date on: a customer's own, or with --list the list's")
      .argument("<mils>", "mils a frame; 1 mil is $0.0001", parseMils)
      .option("--customer <id|email>", "cus_… or an e-mail address")
      .option("--list", "for everybody without a price of their own")
      .option("--free", "a price of 0 is meant"),
  ).action((milsPerFrame: number, options: SetOptions) => {
    assertMeant(milsPerFrame, options);
    return change(milsPerFrame, options);
  });
  withChange(
    prices
      .command("end")
      .description("end a customer's own price: from then on the list's is theirs again")
      .requiredOption("--customer <id|email>", "cus_… or an e-mail address"),
  ).action((options: ChangeOptions) => change(null, options));
}

const withChange = (command: Command): Command =>
  withOperator(
    command
      .option("--from <date>", "when it takes effect, such as 2027-01-31 (00:00 UTC); default: now", parseDate)
      .requiredOption("--reason <text>", "why; stays with us")
      .option("--override-notice <reason>", "let somebody pay more with less than 30 days' notice; kept on record")
      .option("--json", "print JSON on stdout"),
  );

/** A word that was forgotten must not change what everybody pays, nor make frames free. */
function assertMeant(milsPerFrame: number, { customer, list, free }: SetOptions): void {
  if ((customer === undefined) === (list === undefined)) {
    throw new UserError(
      "Whose price? Expected either --customer <id|email>, or --list for everybody without a price of their own.",
    );
  }
  if (milsPerFrame === 0 && !free) throw new UserError("A price of 0 makes frames free: expected --free with it.");
}

async function change(mils_per_frame: number | null, options: ChangeOptions): Promise<void> {
  const result = await withDatabase(async ({ db }) => {
    const customer_id = options.customer === undefined ? null : await requireCustomer(db, options.customer);
    const price = {
      customer_id,
      mils_per_frame,
      effective_from: options.from ?? null,
      note: options.reason,
      operator: operatorOf(options),
      override_reason: options.overrideNotice ?? null,
    };
    return { customer_id, mils_per_frame, ...(await setPrice(db, price)) };
  });
  if (options.json) {
    printJson(result);
    return;
  }
  const whose = result.customer_id ?? "the list";
  const from = result.effective_from.toISOString();
  console.log(
    mils_per_frame === null
      ? `${whose}: the list's price from ${from}.`
      : `${whose}: ${mils_per_frame} mils ($${usdText(mils(mils_per_frame))}) a frame from ${from}.`,
  );
}

async function list({ customer, json }: { customer?: string; json?: true }): Promise<void> {
  const prices = await withDatabase(async ({ db }) =>
    pricesOf(db, customer === undefined ? null : await requireCustomer(db, customer)),
  );
  if (json) printJson(prices);
  else printTable(["WHOSE", "MILS", "USD", "FROM", "STATE", "RECORDED", "BY", "REASON"], prices.map(rowOf));
}

function rowOf(price: ListedPrice): string[] {
  const { customer_id, mils_per_frame, effective_from, recorded_at, state, operator, note, override_reason } = price;
  return [
    customer_id ?? "list",
    mils_per_frame === null ? "as list" : String(mils_per_frame),
    mils_per_frame === null ? "" : usdText(mils(mils_per_frame)),
    effective_from === null ? "the beginning" : effective_from.toISOString(),
    state,
    recorded_at.toISOString().slice(0, 10),
    operator,
    override_reason === null ? note : `${note} (without notice: ${override_reason})`,
  ];
}

function parseMils(text: string): number {
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("expected a whole number of mils a frame");
}

/** A day, or a moment with its offset; nothing that depends on where this runs. */
function parseDate(text: string): Date {
  const ms = momentMs(text);
  if (!Number.isNaN(ms)) return new Date(ms);
  throw new InvalidArgumentError("expected a date such as 2027-01-31 (00:00 UTC) or 2027-01-31T09:00:00+01:00");
}
