/** `dream-engine keys create|list|revoke|limit`. The raw key is printed once, here, and exists nowhere else of ours. */
import { randomBytes } from "node:crypto";

import { type Command, InvalidArgumentError } from "commander";

import { ApiError } from "#contract/errors.ts";
import { KEY_BURST_DEFAULT, KEY_RATE_PER_S_DEFAULT } from "#contract/limits.ts";
import { type Mils, milsFromUsd, usdText } from "#contract/mils.ts";
import { addressOf, signedUpWith } from "#keys/customers.ts";
import { parseExpiry } from "#keys/expiry.ts";
import {
  createKey,
  type CreatedKey,
  limitKey,
  type ListedKey,
  listKeys,
  REVOKED_LISTED_MAX,
  revokeKey,
} from "#keys/keys.ts";
import { PREFIX_CHARS, prefixOf, readToken } from "#keys/token.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Config } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";

import { withDatabase } from "../context.ts";
import { operatorOf, withOperator } from "../operator.ts";
import { printJson, printTable } from "../print.ts";
import { UserError } from "../user-error.ts";

interface CreateOptions {
  readonly customer: string;
  readonly initialCredits?: Mils;
  readonly label?: string;
  readonly rate?: number;
  readonly burst?: number;
  readonly expires?: Date;
  readonly operator?: string;
  readonly json?: true;
}

export function addKeys(program: Command): void {
  const keys = program.command("keys").description("API keys; several may share a customer's balance");
  withOperator(
    keys
      .command("create")
      .description("mint a key for a customer, who is created when new (with Stripe configured, there too)")
      .requiredOption("--customer <id|email>", "cus_… or an e-mail address")
      .option("--initial-credits <usd>", "dollars to credit, such as 25.00", parseUsd)
      .option("--label <text>", "a name for people")
      .option("--rate <per second>", `requests a second; default ${KEY_RATE_PER_S_DEFAULT}`, parseCount)
      .option("--burst <requests>", `requests at once; default ${KEY_BURST_DEFAULT}`, parseCount)
      .option("--expires <when>", "30d, 2030-12-31 or 2030-12-31T18:00Z; default never", parseEnd)
      .option("--json", "print JSON on stdout"),
  ).action(create);
  keys
    .command("list")
    .description(
      `all keys, or one customer's; never the keys themselves; of revoked ones the last ${REVOKED_LISTED_MAX}`,
    )
    .option("--customer <id|email>")
    .option("--json", "print JSON on stdout")
    .action(list);
  keys
    .command("revoke")
    .description("end a key; effective at once, also inside a debit that is under way")
    .argument("<key>", "key id (key_…) or the key's first characters as `keys list` shows them")
    .option("--json", "print JSON on stdout")
    .action(revoke);
  keys
    .command("limit")
    .description(
      "set a key's own rate limit, which holds from its next request on; what is not given goes back to the default " +
        `(${KEY_RATE_PER_S_DEFAULT}/s, burst ${KEY_BURST_DEFAULT})`,
    )
    .argument("<key>", "key id (key_…) or the key's first characters")
    .option("--rate <per second>", "requests a second", parseCount)
    .option("--burst <requests>", "requests at once", parseCount)
    .option("--json", "print JSON on stdout")
    .action(limit);
}

async function create(options: CreateOptions): Promise<void> {
  const { customer, initialCredits, label, rate, burst, expires, json } = options;
  const { created, warnings } = await withDatabase(async ({ db }, config) => {
    const created = await createKey(
      db,
      {
        customer,
        ...(initialCredits === undefined ? {} : { initial_credits: initialCredits }),
        label,
        rate_per_s: rate,
        burst,
        expires_at: expires,
        operator: operatorOf(options),
      },
      randomBytes,
    );
    const warnings = created.created_customer
      ? [await signedUpBeside(db, customer), await createAtStripe(db, config, created)]
      : [];
    return { created, warnings };
  });
  for (const warning of warnings) if (warning !== null) process.stderr.write(`${warning}\n`);
  const expires_at = expires ?? null;
  if (json) printJson({ ...created, expires_at, balance_usd: usdText(created.balance_mils) });
  else console.log(describe(created, expires_at));
}

/** Whoever made a new customer of an address may have meant one that signed up with it. */
async function signedUpBeside(db: Database, customer: string): Promise<string | null> {
  const others = await signedUpWith(db, customer);
  if (others.length === 0) return null;
  return (
    `note: ${others.join(", ")} signed up with ${customer}, which nobody has verified; the new customer is another one. ` +
    "Name the other by its id where you mean it"
  );
}

/** A person waits, and the customer is made at the first top-up in any case. */
const STRIPE_WITHIN_MS = 10_000;

const noneAtStripe = (reason: string): string =>
  `warning: the key is made; no customer at Stripe yet (${reason}), the first top-up makes it`;

/** Null, or what to tell the operator: a key is of use without Stripe, so a failure there is not this command's. */
async function createAtStripe(db: Database, config: Config, { customer_id }: CreatedKey): Promise<string | null> {
  if (config.STRIPE_SECRET_KEY === undefined) return null;
  try {
    const { createStripe } = await import("#billing/stripe.ts"); // large, and most commands end without it
    const { ensureStripeCustomer } = await import("#billing/stripe-customer.ts");
    const stripe = createStripe(config);
    const [row] = await db.query<{ email: string | null }>(`SELECT email FROM customers WHERE id = $1`, [customer_id]);
    if (stripe) {
      const made = ensureStripeCustomer(db, stripe, customer_id, row?.email ?? null);
      if (!(await settlesWithin(STRIPE_WITHIN_MS, made))) return noneAtStripe("it did not answer");
    }
    return null;
  } catch (error) {
    // What customers are told of it (try again) is not for the operator, whose key is made.
    const reason = error instanceof ApiError ? error.cause : error;
    return noneAtStripe(reason instanceof Error ? reason.message : String(reason));
  }
}

function describe(
  { api_key, key_id, customer_id, balance_mils, created_customer }: CreatedKey,
  expiresAt: Date | null,
): string {
  return [
    "",
    `  API key    ${api_key}`,
    "",
    "  Keep it now: it is shown this once and only its hash is stored.",
    "",
    `  Key id     ${key_id}`,
    `  Customer   ${customer_id}${created_customer ? " (new)" : ""}`,
    `  Balance    $${usdText(balance_mils)} (${balance_mils} mils)`,
    ...(expiresAt ? [`  Expires    ${expiresAt.toISOString()}`] : []),
    "",
  ].join("\n");
}

async function list({ customer, json }: { customer?: string; json?: true }): Promise<void> {
  const keys = await withDatabase(({ db }) => listKeys(db, customer));
  const now = Date.now();
  if (json) {
    printJson(keys.map((key) => ({ ...key, state: stateOf(key, now) })));
    return;
  }
  const heading = [
    "KEY ID",
    "KEY",
    "CUSTOMER",
    "LABEL",
    "LIMIT",
    "CREATED",
    "LAST USED",
    "EXPIRES",
    "STATE",
    "BALANCE",
  ];
  printTable(
    heading,
    keys.map((key) => rowOf(key, now)),
  );
}

function rowOf(key: ListedKey, now: number): string[] {
  return [
    key.key_id,
    `${key.prefix}…`,
    key.email ?? (key.signup_email === null ? key.customer_id : `${key.customer_id} ${addressOf(key)}`),
    key.label ?? "",
    limitText(key),
    key.created_at.toISOString().slice(0, 10),
    key.last_used_at ? minute(key.last_used_at) : "never",
    key.expires_at ? minute(key.expires_at) : "never",
    stateOf(key, now),
    `$${usdText(key.balance_mils)}`,
  ];
}

/** UTC, as all times that we print. */
const minute = (time: Date): string => time.toISOString().slice(0, 16).replace("T", " ");

function stateOf({ revoked_at, expires_at }: ListedKey, now: number): "active" | "revoked" | "expired" {
  if (revoked_at) return "revoked";
  return expires_at && expires_at.getTime() <= now ? "expired" : "active";
}

function limitText({ rate_per_s, burst }: Pick<ListedKey, "rate_per_s" | "burst">): string {
  if (rate_per_s === null && burst === null) return "default";
  return `${rate_per_s ?? KEY_RATE_PER_S_DEFAULT}/s, ${burst ?? KEY_BURST_DEFAULT}`;
}

async function revoke(key: string, { json }: { json?: true }): Promise<void> {
  const name = nameOf(key);
  const revoked = await withDatabase(({ db }) => revokeKey(db, name));
  if (json) printJson(revoked);
  else console.log(`${revoked.key_id} (${revoked.prefix}…) of ${revoked.customer_id} is revoked.`);
}

async function limit(key: string, options: { rate?: number; burst?: number; json?: true }): Promise<void> {
  const { rate, burst, json } = options;
  const name = nameOf(key);
  const limited = await withDatabase(({ db }) =>
    limitKey(db, name, { rate_per_s: rate ?? null, burst: burst ?? null }),
  );
  if (json) printJson(limited);
  else if (rate === undefined && burst === undefined) console.log(`${limited.key_id} has the default limit again.`);
  else console.log(`${limited.key_id}: ${rate ?? "default"} requests a second, bursts of ${burst ?? "default"}.`);
}

/** Whoever has the whole key at hand may name it by that; the database knows its first characters. */
function nameOf(key: string): string {
  if (!key.startsWith("dre_") || key.length === PREFIX_CHARS) return key;
  if (key.length < PREFIX_CHARS) {
    throw new UserError(
      `${key} is too short to name a key: expected its first ${PREFIX_CHARS} characters as \`keys list\` shows them, or its key id.`,
    );
  }
  const read = readToken(key);
  if (!read.ok) throw new UserError(`The API key ${read.problem}. Name it by its key id or by its first characters.`);
  return prefixOf(key);
}

/** Exact dollars as mils; refused by commander with what was expected. */
export function parseUsd(text: string): Mils {
  return parsed(() => milsFromUsd(text));
}

const parseEnd = (text: string): Date => parsed(() => parseExpiry(text, Date.now()));

function parsed<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

function parseCount(text: string): number {
  const value = Number(text);
  if (/^\d{1,6}$/.test(text) && value > 0) return value;
  throw new InvalidArgumentError("expected a whole number from 1 to 999999");
}
