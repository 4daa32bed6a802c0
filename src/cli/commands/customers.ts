/** `dream-engine customers list|show|close|reopen|confirm-email|weight`. */
import { type Command, InvalidArgumentError } from "commander";

import { type CustomerOverview, type CustomerRow, listCustomers, readCustomer } from "#billing/overview.ts";
import { usdText } from "#contract/mils.ts";
import { closeCustomer, reopenCustomer } from "#keys/close.ts";
import { addressOf, confirmEmail } from "#keys/customers.ts";
import { recordAction } from "#ledger/operator-actions.ts";
import { setDispatchWeight, WEIGHT_MAX, WEIGHT_MIN } from "#rollouts/weight.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withOperator } from "../operator.ts";
import { printJson, printTable } from "../print.ts";
import { UserError } from "../user-error.ts";
import { requireCustomer } from "./credits.ts";

interface ChangeOptions {
  readonly reason: string;
  readonly operator?: string;
  readonly json?: true;
}

export function addCustomers(program: Command): void {
  const customers = program.command("customers").description("whom keys and balances belong to");
  customers
    .command("list")
    .description("all customers with what they have and owe")
    .option("--json", "print JSON on stdout")
    .action(list);
  customers
    .command("show")
    .description("balance, debt, price, keys, rollouts, top-ups, last entries, what operators did")
    .argument("<customer>", "cus_… or an e-mail address")
    .option("--json", "print JSON on stdout")
    .action(show);
  withOperator(
    customers
      .command("close")
      .description("revoke every key and make no more; refunds, disputes and the statement go on")
      .argument("<customer>", "cus_… or an e-mail address")
      .requiredOption("--reason <text>", "why")
      .option("--json", "print JSON on stdout"),
  ).action(close);
  withOperator(
    customers
      .command("reopen")
      .description("let a closed customer have keys again; revoked ones stay revoked")
      .argument("<customer>", "cus_… or an e-mail address")
      .requiredOption("--reason <text>", "why"),
  ).action(reopen);
  withOperator(
    customers
      .command("confirm-email")
      .description("from now on the address that a customer signed up with names it; you know that it is theirs")
      .argument("<customer>", "cus_…")
      .requiredOption("--reason <text>", "how you know"),
  ).action(confirm);
  withOperator(
    customers
      .command("weight")
      .description("share in dispatch: twice the weight is given twice the frames, while others wait too")
      .argument("<customer>", "cus_… or an e-mail address")
      .argument("<weight>", `${WEIGHT_MIN} to ${WEIGHT_MAX}; everybody has ${WEIGHT_MIN} at first`, parseWeight)
      .requiredOption("--reason <text>", "why")
      .option("--json", "print JSON on stdout"),
  ).action(weigh);
}

function parseWeight(text: string): number {
  const weight = Number(text);
  if (/^\d+$/.test(text) && weight >= WEIGHT_MIN && weight <= WEIGHT_MAX) return weight;
  throw new InvalidArgumentError(`expected a whole number from ${WEIGHT_MIN} to ${WEIGHT_MAX}, got ${text}`);
}

async function list({ json }: { json?: true }): Promise<void> {
  const customers = await withDatabase(({ db }) => listCustomers(db));
  if (json) printJson(customers);
  else printTable(["CUSTOMER", "E-MAIL", "BALANCE", "DEBT", "CREATED", "STATE"], customers.map(rowOf));
}

function rowOf(row: CustomerRow): string[] {
  const { customer_id, balance_mils, debt_mils, created_at, closed_at } = row;
  return [
    customer_id,
    addressOf(row),
    `$${usdText(balance_mils)}`,
    debt_mils === 0n ? "" : `$${usdText(debt_mils)}`,
    day(created_at),
    closed_at ? `closed ${day(closed_at)}` : "open",
  ];
}

async function show(customer: string, { json }: { json?: true }): Promise<void> {
  const overview = await withDatabase(async ({ db }) => readCustomer(db, await requireCustomer(db, customer)));
  if (overview === null) throw new UserError(`There is no customer ${customer}.`);
  if (json) printJson(overview);
  else print(overview);
}

function print(c: CustomerOverview): void {
  console.log(
    [
      `Customer   ${c.customer_id}${addressOf(c) === "" ? "" : ` · ${addressOf(c)}`}`,
      `Since      ${day(c.created_at)}${c.closed_at ? `, closed ${day(c.closed_at)}` : ""}`,
      `Stripe     ${c.stripe_customer_id ?? "not a customer there yet"}`,
      `Balance    $${usdText(c.balance_mils)} (${c.balance_mils} mils)`,
      `Debt       $${usdText(c.debt_mils)}`,
      `Weight     ${c.dispatch_weight} in dispatch`,
      `Price      ${c.mils_per_frame} mils a frame${c.prices.some((price) => price.state === "scheduled") ? ", changes are scheduled (prices list)" : ""}`,
    ].join("\n"),
  );
  section(
    "Keys",
    ["KEY ID", "KEY", "LABEL", "CREATED", "STATE"],
    c.keys.map((key) => [
      key.key_id,
      `${key.prefix}…`,
      key.label ?? "",
      day(key.created_at),
      key.revoked_at ? `revoked ${day(key.revoked_at)}` : key.expires_at ? `expires ${day(key.expires_at)}` : "active",
    ]),
  );
  section(
    "Rollouts",
    ["STATUS", "COUNT", "EARNED"],
    c.rollouts.map(({ status, count, earned_mils }) => [status, String(count), `$${usdText(earned_mils)}`]),
  );
  section(
    "Top-ups",
    ["AT", "USD", "STATE", "CREDITED", "TAKEN BACK", "PAYMENT", "PROBLEM"],
    c.topups.map((topup) => [
      time(topup.at),
      topup.amount_cents === null ? "" : (topup.amount_cents / 100).toFixed(2),
      topup.state,
      topup.credited_mils === null ? "" : `$${usdText(topup.credited_mils)}`,
      topup.clawed_back_mils === null || topup.clawed_back_mils === 0n ? "" : `$${usdText(topup.clawed_back_mils)}`,
      topup.payment_id ?? "",
      topup.problem ?? "",
    ]),
  );
  section(
    "Last entries",
    ["AT", "ACCOUNT", "KIND", "USD", "AFTER", "REFERENCE", "DETAIL"],
    c.entries.map((entry) => [
      time(entry.at),
      entry.account,
      entry.kind,
      usdText(entry.amount_mils),
      usdText(entry.balance_after_mils),
      entry.reference,
      entry.detail,
    ]),
  );
  section(
    "By operators",
    ["AT", "BY", "WHAT", "REASON", "REFERENCE"],
    c.actions.map(({ at, operator, action, reason, reference }) => [
      time(at),
      operator,
      action,
      reason,
      reference ?? "",
    ]),
  );
}

function section(title: string, heading: readonly string[], rows: readonly (readonly string[])[]): void {
  console.log(`\n${title}${rows.length === 0 ? ": none" : ""}`);
  if (rows.length > 0) printTable(heading, rows);
}

async function close(customer: string, options: ChangeOptions): Promise<void> {
  const closed = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    return await db.transaction(async (tx) => {
      const result = await closeCustomer(tx, customer_id);
      await recordAction(tx, {
        ...actionOf(options, customer_id),
        action: "customers close",
        details: { keys_revoked: result.keys_revoked },
      });
      return { customer_id, ...result };
    });
  });
  if (options.json) printJson(closed);
  else console.log(`${closed.customer_id} is closed; ${closed.keys_revoked} keys revoked.`);
}

async function reopen(customer: string, options: ChangeOptions): Promise<void> {
  const customerId = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    await db.transaction(async (tx) => {
      await reopenCustomer(tx, customer_id);
      await recordAction(tx, { ...actionOf(options, customer_id), action: "customers reopen", details: {} });
    });
    return customer_id;
  });
  console.log(`${customerId} is open again; \`keys create --customer ${customerId}\` makes a key.`);
}

async function confirm(customer: string, options: ChangeOptions): Promise<void> {
  const { customer_id, email } = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    return await db.transaction(async (tx) => {
      const confirmed = await confirmEmail(tx, customer_id);
      await recordAction(tx, {
        ...actionOf(options, customer_id),
        action: "customers confirm-email",
        details: confirmed,
      });
      return { customer_id, ...confirmed };
    });
  });
  console.log(`${email} names ${customer_id} from now on.`);
}

async function weigh(customer: string, weight: number, options: ChangeOptions): Promise<void> {
  const changed = await withDatabase(async ({ db }) => {
    const customer_id = await requireCustomer(db, customer);
    return await db.transaction(async (tx) => {
      const before = await setDispatchWeight(tx, customer_id, weight);
      await recordAction(tx, {
        ...actionOf(options, customer_id),
        action: "customers weight",
        details: { before, weight },
      });
      return { customer_id, before, weight };
    });
  });
  if (options.json) printJson(changed);
  else console.log(`${changed.customer_id} has weight ${weight} in dispatch from now on; it was ${changed.before}.`);
}

const actionOf = (options: ChangeOptions, customer_id: string) => ({
  operator: operatorOf(options),
  customer_id,
  reason: options.reason,
  reference: null,
});

const day = (date: Date): string => date.toISOString().slice(0, 10);
const time = (date: Date): string => `${date.toISOString().slice(0, 19)}Z`;
