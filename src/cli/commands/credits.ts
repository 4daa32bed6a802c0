/** `dream-engine credits grant <customer> <usd>`: credit without a payment. */
import { randomUUID } from "node:crypto";

import type { Command } from "commander";

import { type Mils, usdText } from "#contract/mils.ts";
import { findCustomer } from "#keys/customers.ts";
import { credit } from "#ledger/ledger.ts";

import { withDatabase } from "../context.ts";
import { printJson } from "../print.ts";
import { UserError } from "../user-error.ts";
import { parseUsd } from "./keys.ts";

export function addCredits(program: Command): void {
  program
    .command("credits")
    .description("a customer's prepaid credit")
    .command("grant")
    .description("add credit without a payment")
    .argument("<customer>", "cus_… or an e-mail address")
    .argument("<usd>", "dollars, such as 25.00", parseUsd)
    .option("--reference <text>", "credited once, however often the command is repeated with it")
    .option("--json", "print JSON on stdout")
    .action(grant);
}

async function grant(customer: string, amount: Mils, options: { reference?: string; json?: true }): Promise<void> {
  const reference = `grant_${options.reference ?? randomUUID()}`;
  const result = await withDatabase(async ({ db }) => {
    const customer_id = await findCustomer(db, customer);
    if (customer_id === null) {
      throw new UserError(`There is no customer ${customer}; \`keys create --customer ${customer}\` makes one.`);
    }
    return { customer_id, ...(await credit(db, { customer_id, amount, reference, detail: "credit granted" })) };
  });
  if (options.json) {
    printJson({ ...result, reference });
    return;
  }
  const what = result.credited ? `$${usdText(amount)} credited` : `${reference} was credited before, nothing was added`;
  console.log(`${what}; ${result.customer_id} has $${usdText(result.balance_mils)}.`);
}
