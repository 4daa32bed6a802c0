/** What all commands of a customer share: where the API is, whose key, for whom the output is, and how they end. */
import { type Command, InvalidArgumentError } from "commander";

import { readConfig } from "#platform/config.ts";

import { type Api, createApi } from "./api/client.ts";
import { ApiProblem } from "./api/problem.ts";
import { EXIT } from "./exit-codes.ts";
import { createOutput, type Output } from "./output.ts";
import { findRunningServer, notedServer } from "./running-server.ts";

export interface CustomerOptions {
  readonly url?: string;
  readonly key?: string;
  readonly json?: true;
  readonly giveUpAfter?: number;
}

export interface Customer {
  readonly api: Api;
  readonly out: Output;
  /** How long a server that went away is waited for. */
  readonly patienceMs: number;
}

/** Commands that wait for something long outlive a restart of the server. */
const WAITING_PATIENCE_S = 120;
const PATIENCE_S = 5;

export function withCustomer(command: Command, { waits = false } = {}): Command {
  return command
    .option("--url <url>", "base URL; default: the server that runs on DATA_DIR, else PUBLIC_URL")
    .option("--key <key>", "API key (a process list shows it: DREAM_API_KEY in the environment is better)")
    .option(
      "--give-up-after <seconds>",
      "how long to try again while the server cannot be reached",
      parseSeconds,
      waits ? WAITING_PATIENCE_S : PATIENCE_S,
    )
    .option("--json", "JSON on stdout, everything for people on stderr");
}

export async function openCustomer(options: CustomerOptions): Promise<Customer> {
  const out = createOutput(options.json === true);
  const { url } = options;
  const patienceMs = (options.giveUpAfter ?? PATIENCE_S) * 1_000;
  const api = createApi({
    url: url === undefined ? defaultUrl : withoutSlash(url),
    key: options.key ?? process.env["DREAM_API_KEY"] ?? null,
    patienceMs,
    onRetry: ({ message }) => process.stderr.write(`${message} Trying again …\n`),
  });
  return { api, out, patienceMs };
}

/** Commander ends a wrong call with 1; a customer's scripts tell it from an error by 2. Holds for subcommands, too. */
export function endsUsageErrors(command: Command): Command {
  return command.exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? EXIT.done : EXIT.usage));
}

const withoutSlash = (url: string): string => url.replace(/\/+$/, "");

/** Throws ApiProblem, which is tried again, where the server of DATA_DIR is known to be away. */
async function defaultUrl(): Promise<string> {
  const { DATA_DIR, PUBLIC_URL, HOST, PORT } = readConfig(process.env);
  const server = await findRunningServer(DATA_DIR);
  if (server) return withoutSlash(server.url);
  if (PUBLIC_URL !== undefined) return withoutSlash(PUBLIC_URL);
  // It was killed, and whoever listens at the default address is somebody else: the key is not for them.
  const away = await notedServer(DATA_DIR);
  if (!away) return `http://${HOST}:${PORT}`;
  const message = `The server of ${DATA_DIR} (last at ${away.url}) does not run. Start it (npm start), or name another by --url.`;
  throw new ApiProblem(message, { status: null, code: null });
}

export function parseCount(text: string): number {
  const count = Number(text);
  if (!/^\d{1,9}$/.test(text) || count < 1)
    throw new InvalidArgumentError(`expected a whole number from 1, got ${text}`);
  return count;
}

function parseSeconds(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError(`expected a whole number of seconds, got ${text}`);
  return Number(text);
}

/** Exact, also past 2^53. */
export function parseSeed(text: string): bigint {
  if (!/^-?\d{1,20}$/.test(text)) throw new InvalidArgumentError(`expected a whole number of 64 bits, got ${text}`);
  return BigInt(text);
}

export function parseNumber(text: string): number {
  const number = Number(text);
  if (text.trim() === "" || !Number.isFinite(number)) throw new InvalidArgumentError(`expected a number, got ${text}`);
  return number;
}
