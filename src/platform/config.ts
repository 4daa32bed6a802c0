/**
 * The environment, read once per process. `SETTINGS` is the whole table: name, meaning, default and parser;
 * docs/operations.md prints it, and anything a parser refuses stops the process with a message that says what was
 * expected.
 */
import { isIP } from "node:net";
import { resolve } from "node:path";

import { LOG_LEVELS, type LogLevel } from "./log.ts";

export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

interface Setting<T, Fallback extends string | undefined = string | undefined> {
  readonly meaning: string;
  /** Text that stands in when the variable is unset or empty; undefined means the setting is then absent. */
  readonly fallback: Fallback;
  readonly expected: string;
  /** The value, or null when the text is not acceptable. */
  readonly parse: (text: string) => T | null;
}

function setting<T, Fallback extends string | undefined>(
  meaning: string,
  fallback: Fallback,
  expected: string,
  parse: (text: string) => T | null,
): Setting<T, Fallback> {
  return { meaning, fallback, expected, parse };
}

function integer(min: number, max: number): (text: string) => number | null {
  return (text) => {
    const value = Number(text);
    return /^\d+$/.test(text) && value >= min && value <= max ? value : null;
  };
}

function oneOf<const T extends string>(...values: readonly T[]): (text: string) => T | null {
  return (text) => values.find((value) => value === text) ?? null;
}

function url(...protocols: readonly string[]): (text: string) => string | null {
  return (text) => (URL.canParse(text) && protocols.includes(new URL(text).protocol) ? text : null);
}

/** The base of a server: no user, no query, nothing that a request would lose. */
function endpoint(text: string): string | null {
  if (url("http:", "https:")(text) === null) return null;
  const { username, password, search, hash } = new URL(text);
  return [username, password, search, hash].every((part) => part === "") ? text : null;
}

/** Bucket and prefix; a prefix is as long as a key at most, and of the same characters (blobs/blob-key.ts). */
const S3_URL = /^s3:\/\/[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](\/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}){0,8}\/?$/;

/** An IP address, or one with a prefix length. */
function isAddressRange(text: string): boolean {
  const [address = "", prefix, ...rest] = text.split("/");
  const version = isIP(address);
  if (version === 0 || rest.length > 0) return false;
  return prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (version === 4 ? 32 : 128));
}

const anyText = (text: string): string => text;
const path = (text: string): string => resolve(text);

export const SETTINGS = {
  PORT: setting(
    "port of the gateway (0 picks a free one)",
    "8080",
    "a port number from 0 to 65535",
    integer(0, 65_535),
  ),
  HOST: setting("address the gateway listens on", "127.0.0.1", "an address", anyText),
  DATA_DIR: setting("where the embedded system keeps its data", ".dream-engine", "a path", path),
  DATABASE_URL: setting(
    "PostgreSQL; unset: an embedded one under DATA_DIR",
    undefined,
    "postgres://user:password@host:port/database",
    url("postgres:", "postgresql:"),
  ),
  REDIS_URL: setting(
    "Redis for the queue; unset: the queue lives in PostgreSQL",
    undefined,
    "redis://host:port/db or rediss://…",
    url("redis:", "rediss:"),
  ),
  BLOB_URL: setting(
    "blob store: a folder, or a bucket of S3 or of what speaks its protocol; unset: DATA_DIR/blobs",
    undefined,
    "file:///absolute/path or s3://bucket/optional/prefix (credentials by the AWS SDK's own chain, never in the URL)",
    (text) => (S3_URL.test(text) ? text : url("file:")(text)),
  ),
  S3_ENDPOINT: setting("where the bucket is; unset: AWS", undefined, "http://… or https://…", endpoint),
  S3_REGION: setting(
    "region of the bucket; unset: AWS_REGION or the profile's, with S3_ENDPOINT us-east-1",
    undefined,
    "a region such as eu-central-1",
    (text) => (/^[a-z0-9-]{1,63}$/.test(text) ? text : null),
  ),
  S3_PUBLIC_ENDPOINT: setting(
    "where clients reach the bucket, for video links; unset: S3_ENDPOINT; none: the gateway serves the videos itself",
    undefined,
    "http://…, https://… or none",
    (text) => (text === "none" ? text : endpoint(text)),
  ),
  S3_FORCE_PATH_STYLE: setting(
    "on: the bucket is in the path of requests, off: in their host name; unset: on with S3_ENDPOINT",
    undefined,
    "on or off",
    oneOf("on", "off"),
  ),
  PUBLIC_URL: setting(
    "base URL that clients reach us under; unset: the one that each request used (its Host header)",
    undefined,
    "http://… or https://…",
    (text) => url("http:", "https:")(text)?.replace(/\/+$/, "") ?? null,
  ),
  AUTH: setting(
    "off: requests without a key are the built-in customer cus_local (local development)",
    "on",
    "on or off",
    oneOf("on", "off"),
  ),
  MODELS_DIR: setting("where the model bundles are", "models", "a path", path),
  DEFAULT_MODEL: setting("model behind the bare base URL; unset: the flagship", undefined, "a model slug", (text) =>
    /^[a-z0-9][a-z0-9-]{0,62}$/.test(text) ? text : null,
  ),
  FLEET: setting(
    "who runs the inference workers: this scheduler as its child processes, Kubernetes, or somebody else; unset: local in `serve`, none in `scheduler`",
    undefined,
    "local, kubernetes or none",
    oneOf("local", "kubernetes", "none"),
  ),
  WORKERS: setting(
    "inference workers of a model, at most; 0 with `serve`: somebody else runs them",
    "1",
    "a number from 0 to 1000",
    integer(0, 1_000),
  ),
  WORKERS_MIN: setting(
    "inference workers of a model that are kept whatever comes",
    "0",
    "a number from 0 to 1000",
    integer(0, 1_000),
  ),
  SCALEDOWN_S: setting(
    "a worker that was not needed for so many seconds is stopped",
    "60",
    "a number of seconds from 0 to 86400",
    integer(0, 86_400),
  ),
  ORT_PROVIDERS: setting(
    "ONNX Runtime execution providers, first match wins",
    "cpu",
    "a comma-separated list of cpu, cuda, tensorrt",
    (text) => {
      const names = text.split(",").map((name) => name.trim());
      return names.every((name) => ["cpu", "cuda", "tensorrt"].includes(name)) ? names : null;
    },
  ),
  FFMPEG_PATH: setting("ffmpeg binary; unset: the one from npm", undefined, "a path", path),
  OPERATOR_TOKEN: setting(
    "bearer token for /metrics, /v1/admin/… and /dashboard; unset: those answer loopback connections only, and nobody where PUBLIC_URL or TRUSTED_PROXIES tell of a proxy",
    undefined,
    "at least 16 characters",
    (text) => (text.length >= 16 ? text : null),
  ),
  SCALING_TOKEN: setting(
    "bearer token for a scheduler's /scaling/<model>, which KEDA asks; unset: loopback connections only",
    undefined,
    "at least 16 characters",
    (text) => (text.length >= 16 ? text : null),
  ),
  GPU_USD_PER_HOUR: setting(
    "rent of one worker's accelerator in dollars an hour, for what a frame costs; the default is the published cost basis of 2026-05-05",
    "3.95",
    "a number from 0 to 1000",
    (text) => (/^\d{1,4}(\.\d{1,4})?$/.test(text) && Number(text) <= 1_000 ? Number(text) : null),
  ),
  OUTBOUND_PRIVATE: setting(
    "on: webhooks and the URLs in datasets may lead to private, loopback and link-local addresses",
    "off",
    "on or off",
    oneOf("on", "off"),
  ),
  RETENTION_DAYS: setting(
    "how long the inputs and videos of a rollout or dataset are kept after its end",
    "30",
    "a number of days from 1 to 3650",
    integer(1, 3_650),
  ),
  DATASETS_UNFINISHED_MAX: setting(
    "datasets that a customer may have that have not ended",
    "100",
    "a number from 1 to 10000",
    integer(1, 10_000),
  ),
  DATASET_ROWS_UNFINISHED_MAX: setting(
    "rows that those may have together",
    "1000000",
    "a number from 1 to 100000000",
    integer(1, 100_000_000),
  ),
  DATASET_IDLE_DAYS: setting(
    "a dataset that nobody starts or resumes for so long is cancelled",
    "30",
    "a number of days from 1 to 3650",
    integer(1, 3_650),
  ),
  SCORED_AT_ONCE_MAX: setting(
    "scored rollouts of a customer that are at the workers at once, of all models together",
    "2",
    "a number from 1 to 1000",
    integer(1, 1_000),
  ),
  BACKLOG_MAX_PER_CUSTOMER: setting(
    "rollouts of a customer that may wait in a lane of a model; one more is answered 429",
    "10000",
    "a number from 1 to 1000000",
    integer(1, 1_000_000),
  ),
  BACKLOG_MAX: setting(
    "rollouts of all customers that may wait in a lane of a model; one more is answered 503",
    "100000",
    "a number from 1 to 10000000",
    integer(1, 10_000_000),
  ),
  UPLOADS_MAX: setting("uploads that a customer may keep", "10000", "a number from 1 to 100000", integer(1, 100_000)),
  UPLOADS_GB_MAX: setting(
    "gigabytes that those may have together",
    "20",
    "a number from 1 to 100000",
    integer(1, 100_000),
  ),
  STRIPE_SECRET_KEY: setting(
    "Stripe's secret key; unset: top-up by card answers 503 and everything else works",
    undefined,
    "sk_… or rk_…",
    (text) => (/^(sk|rk)_\S+$/.test(text) ? text : null),
  ),
  STRIPE_WEBHOOK_SECRET: setting(
    "signing secrets of the Stripe webhook; several while one is being rotated",
    undefined,
    "a comma-separated list of whsec_…",
    (text) => {
      const secrets = text.split(",").map((secret) => secret.trim());
      return secrets.every((secret) => /^whsec_\S+$/.test(secret)) ? secrets : null;
    },
  ),
  STRIPE_API_BASE: setting(
    "where Stripe's API is; unset: Stripe itself",
    undefined,
    "http://… or https://…",
    url("http:", "https:"),
  ),
  SIGNUP: setting(
    "on: anybody may make a customer and a key with POST /v1/signup",
    "off",
    "on or off",
    oneOf("on", "off"),
  ),
  TRUSTED_PROXIES: setting(
    "proxies whose X-Forwarded-For is believed; unset: none, the address of the connection counts",
    undefined,
    "a comma-separated list of addresses or CIDR ranges",
    (text) => {
      const ranges = text.split(",").map((range) => range.trim());
      return ranges.every(isAddressRange) ? ranges : null;
    },
  ),
  METRICS_PORT: setting(
    "port of /metrics and /healthz in processes without a gateway (0 picks a free one)",
    "0",
    "a port number from 0 to 65535",
    integer(0, 65_535),
  ),
  LOG_LEVEL: setting("how much is logged", "info", LOG_LEVELS.join(", "), oneOf<LogLevel>(...LOG_LEVELS)),
} as const;

type SettingName = keyof typeof SETTINGS;
type ValueOf<S> = S extends Setting<infer T> ? T : never;
/** Settings whose fallback is text always have a value; the others may be undefined. */
export type Config = {
  readonly [Name in SettingName]: (typeof SETTINGS)[Name]["fallback"] extends string
    ? ValueOf<(typeof SETTINGS)[Name]>
    : ValueOf<(typeof SETTINGS)[Name]> | undefined;
};

/** Values that must not appear in an error message. */
const SECRET: ReadonlySet<string> = new Set([
  "DATABASE_URL",
  "REDIS_URL",
  "OPERATOR_TOKEN",
  "SCALING_TOKEN",
  "STRIPE_SECRET_KEY",
  "STRIPE_WEBHOOK_SECRET",
]);

/** Reads every setting; throws one ConfigError that lists everything that is wrong. */
export function readConfig(env: NodeJS.ProcessEnv): Config {
  const problems: string[] = [];
  const config: Record<string, unknown> = {};
  for (const [name, { fallback, expected, parse }] of Object.entries(SETTINGS)) {
    const text = env[name] === undefined || env[name] === "" ? fallback : env[name];
    if (text === undefined) continue;
    const value = parse(text);
    if (value === null) {
      const got = SECRET.has(name) ? "another value" : JSON.stringify(text.replace(/\/\/[^/]*@/, "//[secret]@"));
      problems.push(`${name}: expected ${expected}, got ${got}`);
    }
    config[name] = value;
  }
  if (problems.length > 0) throw new ConfigError(`The environment is not valid.\n  ${problems.join("\n  ")}`);
  return config as Config; // each value came from the parser of its own name
}
