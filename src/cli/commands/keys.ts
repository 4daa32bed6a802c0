/** `dream-engine keys create|list|revoke|limit`. The raw key is printed once, here, and exists nowhere else of ours. */
import { randomBytes } from "node:crypto";

import { type Command, InvalidArgumentError } from "commander";

import { type Mils, milsFromUsd, usdText } from "#contract/mils.ts";
import { createKey, type CreatedKey, limitKey, type ListedKey, listKeys, revokeKey } from "#keys/keys.ts";

import { prefixOf, readToken } from "#keys/token.ts";

import { withDatabase } from "../context.ts";
import { printJson, printTable } from "../print.ts";

interface CreateOptions {
  readonly customer: string;
  readonly initialCredits?: Mils;
  readonly label?: string;
  readonly json?: true;
}

export function addKeys(program: Command): void {
  const keys = program.command("keys").description("API keys; several may share a customer's balance");
  keys
    .command("create")
    .description("mint a key for a customer, who is created when new")
    .requiredOption("--customer <id|email>", "cus_… or an e-mail address")
    .option("--initial-credits <usd>", "dollars to credit, such as 25.00", parseUsd)
    .option("--label <text>", "a name for people")
    .option("--json", "print JSON on stdout")
    .action(create);
  keys
    .command("list")
    .description("all keys, or one customer's")
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
    .description("set a key's own rate limit; without options it goes back to the default (50/s, burst 200)")
    .argument("<key id>")
    .option("--rate <per second>", "requests a second", parseCount)
    .option("--burst <requests>", "requests at once", parseCount)
    .action(limit);
}

async function create({ customer, initialCredits, label, json }: CreateOptions): Promise<void> {
  const key = {
    customer,
    ...(initialCredits === undefined ? {} : { initial_credits: initialCredits }),
    ...(label === undefined ? {} : { label }),
  };
  const created = await withDatabase(({ db }) => createKey(db, key, randomBytes));
  if (json) printJson({ ...created, balance_usd: usdText(created.balance_mils) });
  else console.log(describe(created));
}

function describe({ api_key, key_id, customer_id, balance_mils, created_customer }: CreatedKey): string {
  return [
    "",
    `  API key    ${api_key}`,
    "",
    "  Keep it now: it is shown this once and only its hash is stored.",
    "",
    `  Key id     ${key_id}`,
    `  Customer   ${customer_id}${created_customer ? " (new)" : ""}`,
    `  Balance    $${usdText(balance_mils)} (${balance_mils} mils)`,
    "",
  ].join("\n");
}

async function list({ customer, json }: { customer?: string; json?: true }): Promise<void> {
  const keys = await withDatabase(({ db }) => listKeys(db, customer));
  if (json) {
    printJson(keys);
    return;
  }
  const heading = ["KEY ID", "KEY", "CUSTOMER", "LABEL", "LIMIT", "CREATED", "STATE", "BALANCE"];
  printTable(heading, keys.map(rowOf));
}

function rowOf(key: ListedKey): string[] {
  return [
    key.key_id,
    `${key.prefix}…`,
    key.email ?? key.customer_id,
    key.label ?? "",
    key.rate_per_s === null && key.burst === null ? "default" : `${key.rate_per_s ?? 50}/s, ${key.burst ?? 200}`,
    key.created_at.toISOString().slice(0, 10),
    key.revoked_at ? "revoked" : key.expires_at && key.expires_at.getTime() <= Date.now() ? "expired" : "active",
    `$${usdText(key.balance_mils)}`,
  ];
}

async function revoke(key: string, { json }: { json?: true }): Promise<void> {
  // Whoever has the whole key at hand may name it by that; the database knows its first characters.
  const name = readToken(key).ok ? prefixOf(key) : key;
  const revoked = await withDatabase(({ db }) => revokeKey(db, name));
  if (json) printJson(revoked);
  else console.log(`${revoked.key_id} (${revoked.prefix}…) of ${revoked.customer_id} is revoked.`);
}

async function limit(keyId: string, { rate, burst }: { rate?: number; burst?: number }): Promise<void> {
  await withDatabase(({ db }) => limitKey(db, keyId, { rate_per_s: rate ?? null, burst: burst ?? null }));
  console.log(
    rate === undefined && burst === undefined
      ? `${keyId} has the default limit again.`
      : `${keyId}: ${rate ?? "default"} requests a second, bursts of ${burst ?? "default"}.`,
  );
}

/** Exact dollars as mils; refused by commander with what was expected. */
export function parseUsd(text: string): Mils {
  try {
    return milsFromUsd(text);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

function parseCount(text: string): number {
  const value = Number(text);
  if (/^\d{1,6}$/.test(text) && value > 0) return value;
  throw new InvalidArgumentError("expected a whole number from 1 to 999999");
}
