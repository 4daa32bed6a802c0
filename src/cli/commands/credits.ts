/** `dream-engine credits grant|adjust`: a customer's balance by hand, with who did it and why on record. */
import { randomUUID } from "node:crypto";

import { type Command, InvalidArgumentError } from "commander";

import { adjustBalance, debtRepaidBy, grantCredit } from "#billing/operator.ts";
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { findCustomer, signedUpWith } from "#keys/customers.ts";
import type { Sql } from "#platform/database.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withOperator } from "../operator.ts";
import { printJson } from "../print.ts";
import { UserError } from "../user-error.ts";
import { parseUsd } from "./keys.ts";

/** Above what anybody is given in a day's work; a zero too many must not become credit. */
const LARGE = mils(1_000_000_000n);

interface Options {
  readonly reason?: string;
  readonly operator?: string;
  readonly reference?: string;
  readonly json?: true;
}

export function addCredits(program: Command): void {
  const credits = program.command("credits").description("a customer's prepaid credit");
  withOperator(
    credits
      .command("grant")
      .description("add credit without a payment")
      .argument("<customer>", "cus_… or an e-mail address")
      .argument("<usd>", "dollars, such as 25.00", parseUsd)
      .option("--large", `more than $${usdText(LARGE)} is meant`)
      .option("--reason <text>", "why")
      .option("--reference <text>", "credited once, however often the command is repeated with it")
      .option("--json", "print JSON on stdout"),
  ).action((customer: string, amount: Mils, options: Options & { readonly large?: true }) => {
    if (amount > LARGE && !options.large) {
      throw new UserError(`$${usdText(amount)} is more than $${usdText(LARGE)}: expected --large where that is meant.`);
    }
    return grant(customer, amount, options);
  });
  withOperator(
    credits
      .command("adjust")
      .description("correct a balance, up or down; never below zero")
      .argument("<customer>", "cus_… or an e-mail address")
      .argument("<usd>", "dollars with a sign, such as +5.00 or -5.00", parseSignedUsd)
      .requiredOption("--reason <text>", "why; the customer sees it in the statement")
      .option("--reference <text>", "adjusted once, however often the command is repeated with it")
      .option("--json", "print JSON on stdout"),
  ).action(adjust);
}

async function grant(customer: string, amount: Mils, options: Options): Promise<void> {
  const reference = `grant_${options.reference ?? randomUUID()}`;
  const by = { reference, operator: operatorOf(options), reason: options.reason ?? "not stated" };
  const result = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    const granted = await grantCredit(db, { customer_id, amount, ...by });
    return { customer_id, ...granted, to_debt_mils: await debtRepaidBy(db, customer_id, reference) };
  });
  if (options.json) {
    printJson({ ...result, reference });
    return;
  }
  const what = result.credited ? `$${usdText(amount)} credited` : `${reference} was credited before, nothing was added`;
  console.log(`${what}${ofWhichToDebt(result)}; ${result.customer_id} has $${usdText(result.balance_mils)}.`);
}

async function adjust(
  customer: string,
  amount: Mils,
  options: Options & { /** Required. */ readonly reason: string },
): Promise<void> {
  const reference = `adjust_${options.reference ?? randomUUID()}`;
  const by = { reference, operator: operatorOf(options), reason: options.reason };
  const result = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    const adjusted = await adjustBalance(db, { customer_id, amount, ...by });
    return { customer_id, ...adjusted, to_debt_mils: await debtRepaidBy(db, customer_id, reference) };
  });
  if (options.json) {
    printJson({ ...result, reference });
    return;
  }
  const what = result.adjusted
    ? `Adjusted by $${usdText(amount)}`
    : `${reference} was adjusted before, nothing was changed`;
  console.log(`${what}${ofWhichToDebt(result)}; ${result.customer_id} has $${usdText(result.balance_mils)}.`);
}

/** Whoever owes has no balance: what is given to them pays the debt first. */
function ofWhichToDebt({ to_debt_mils }: { readonly to_debt_mils: Mils }): string {
  return to_debt_mils > 0n ? `, $${usdText(to_debt_mils)} of it for what was owed` : "";
}

/** Throws UserError when there is none. */
export async function requireCustomer(sql: Sql, customer: string): Promise<string> {
  const customerId = await findCustomer(sql, customer);
  if (customerId !== null) return customerId;
  const signedUp = await signedUpWith(sql, customer);
  if (signedUp.length > 0) {
    throw new UserError(
      `Nobody has verified that ${customer} is the address of ${signedUp.join(", ")}, who signed up with it. ` +
        "Name the customer by its id.",
    );
  }
  throw new UserError(`There is no customer ${customer}; \`keys create --customer ${customer}\` makes one.`);
}

/** Exact dollars with or without a sign, not zero. */
function parseSignedUsd(text: string): Mils {
  const [, sign = "", amount = ""] = /^([+-]?)(.*)$/.exec(text) ?? [];
  const magnitude = parseUsd(amount);
  if (magnitude === 0n) throw new InvalidArgumentError("expected an amount other than zero");
  return sign === "-" ? mils(0n - magnitude) : magnitude;
}
