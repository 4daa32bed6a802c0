/**
 * The deployment of docker-compose.yml without containers: a Redis with its append-only file, a PostgreSQL that syncs to disk,
 * an S3 stand-in (or VersityGW itself), and every process as its own, by the file's command and environment, under a database role and S3 key
 * of its own. Two of what may be two, as many inference workers as asked for; each is started again when it dies.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { escapeIdentifier, escapeLiteral } from "pg";

import { type Parts } from "#cli/context.ts";
import { freePort } from "#cli/ports.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { type Service, stopAll } from "#platform/lifecycle.ts";
import { createLog, type Log } from "#platform/log.ts";

import { type OwnPostgres, startOwnPostgres } from "../chaos/own-postgres.ts";
import { type Ran, run } from "../cli/command.ts";
import { eventually } from "../queue/test-queue.ts";
import { type ComposeService, readCompose } from "./compose.ts";
import { ensureRedis, type RedisServer, type RedisStart } from "./redis-server.ts";
import { type S3User, startS3Server } from "./s3-server.ts";
import { type ProcessSpec, type Supervisor, superviseProcesses, untilGatewayReady } from "./supervisor.ts";
import { startVersityGw } from "./versitygw.ts";

const COMPOSE_FILE = "docker-compose.yml";
const SERVICES = ["gateway", "scheduler", "settlement", "runner", "notifier", "worker"] as const;
type ServiceName = (typeof SERVICES)[number];
/** As the service with a number behind it, from 1 on. */
export type ProcessName = `${ServiceName}-${number}`;

const READY_TIMEOUT_MS = 120_000;
/** As the file's URLs name them. */
const HOSTS = { postgres: "postgres:5432", redis: "redis:6379", s3: "s3:7070" } as const;

export interface TopologyOptions {
  /** The model that everything is about unless a request says otherwise. */
  readonly model: string;
  /** Inference workers, all of that model. */
  readonly workers: number;
  readonly logFile: string;
  /** Default: the stand-in, which answers one request after the other. */
  readonly s3?: "stand-in" | "versitygw";
  /** Beside or instead of what the file says for that service. */
  readonly settings?: (service: ServiceName) => Readonly<Record<string, string>>;
}

export interface Topology extends Service {
  /** Base URLs. */
  readonly gateways: readonly [string, string];
  /** As the schema's owner. */
  readonly db: Database;
  readonly processes: Supervisor<ProcessName>;
  readonly postgres: OwnPostgres;
  readonly redis: RedisServer;
  /** The scheduler that leads; null while its process is down. */
  leader(): Promise<ProcessName | null>;
  /** A command of the operator's. */
  command(...args: readonly string[]): Promise<Ran>;
}

/** Resolves when both gateways answer, a scheduler leads, and every process says that it runs. */
export async function startTopology(options: TopologyOptions): Promise<Topology> {
  const parts: Parts = [];
  const log = createLog("topology", "silent");
  const stop = (): Promise<void> => stopAll(parts.splice(0), log);
  try {
    return { ...(await assemble(options, parts, log)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function assemble(options: TopologyOptions, parts: Parts, log: Log): Promise<Omit<Topology, "stop">> {
  const services = readCompose(COMPOSE_FILE, {
    ...madeUpSecrets(),
    DEFAULT_MODEL: options.model,
    WORKERS: String(options.workers),
  });
  const service = (name: string): ComposeService => {
    const found = services.get(name);
    if (!found) throw new Error(`${COMPOSE_FILE}: expected a service ${name}`);
    return found;
  };
  const folder = mkdtempSync(join(tmpdir(), "dream-topology-"));
  parts.push(["folder", { stop: async () => rmSync(folder, { recursive: true, force: true }) }]);

  const bucket = new URL(service("gateway").environment["BLOB_URL"] ?? "").hostname;
  const startS3 = async (): Promise<Service & { readonly endpoint: string; readonly region?: string }> => {
    if (options.s3 === "versitygw") return startVersityGw(service("s3").environment, service("bucket").environment);
    const standIn = await startS3Server(s3UsersOf([...SERVICES, "operator"], service, bucket));
    await standIn.createBucket(bucket);
    return standIn;
  };
  const [postgres, redis, s3] = await Promise.all([
    startOwnPostgres().then((part) => keep(parts, "postgres", part)),
    ensureRedis(redisAs(service("redis").environment)).then((part) => keep(parts, "redis", part)),
    startS3().then((part) => keep(parts, "s3", part)),
  ]);
  const addresses = { postgres: new URL(postgres.url).host, redis: hostOf(redis.url), s3: hostOf(s3.endpoint) };
  const here = (environment: Readonly<Record<string, string>>): Record<string, string> =>
    Object.fromEntries(Object.entries(environment).map(([name, value]) => [name, readdress(value, addresses)]));

  const setup = here(service("setup").environment);
  const ownerUrl = setup["DATABASE_URL"] ?? "";
  await makeOwner(postgres.url, ownerUrl, log);
  const made = await run(service("setup").command, setup);
  if (made.code !== 0) throw new Error(`${service("setup").command.join(" ")} failed:\n${made.stdout}${made.stderr}`);
  const db = keep(parts, "database", createDatabase({ url: ownerUrl, log }));

  // What containers have of their own, and the S3 stand-in's region.
  const region = s3.region === undefined ? {} : { S3_REGION: s3.region };
  const local = { HOST: "127.0.0.1", DATA_DIR: folder, TMPDIR: folder, HOME: folder, ...region };
  const specOf = async (name: ServiceName, number: number): Promise<ProcessSpec<ProcessName>> => {
    const ports = { PORT: String(await freePort()), METRICS_PORT: String(await freePort()) };
    const env = {
      ...here(service(name).environment),
      ...local,
      ...ports,
      LOG_LEVEL: "info",
      ...options.settings?.(name),
    };
    return { name: `${name}-${number}`, argv: ["src/cli/main.ts", ...service(name).command], env };
  };
  const count: Readonly<Record<ServiceName, number>> = {
    gateway: 2,
    scheduler: 2,
    settlement: 2,
    runner: 1,
    notifier: 1,
    worker: options.workers,
  };
  const specs: ProcessSpec<ProcessName>[] = [];
  for (const name of SERVICES) for (let i = 1; i <= count[name]; i++) specs.push(await specOf(name, i));
  const processes = keep(parts, "processes", superviseProcesses(specs, options.logFile));

  const [first, second] = specs.filter(({ name }) => name.startsWith("gateway"));
  const urlOf = (spec = first): string => `http://127.0.0.1:${spec?.env["PORT"]}`;
  const gateways = [urlOf(first), urlOf(second)] as const;
  const leader = async (): Promise<ProcessName | null> => {
    const [row] = await db.query<{ holder: string | null }>("SELECT holder FROM scheduler_leader");
    const pid = Number(row?.holder?.split(" ").at(-1));
    return [...processes.pids()].find((process) => process[1] === pid)?.[0] ?? null;
  };
  await Promise.all(gateways.map((url) => untilGatewayReady(url, READY_TIMEOUT_MS)));
  await eventually(async () => specs.every(({ name }) => processes.isUp(name)), READY_TIMEOUT_MS);
  await eventually(leader, READY_TIMEOUT_MS);

  const operator = { ...here(service("operator").environment), ...local, PORT: String(await freePort()) };
  return { gateways, db, processes, postgres, redis, leader, command: (...args) => run(args, operator) };
}

function keep<Part extends Service>(parts: Parts, name: string, part: Part): Part {
  parts.push([name, part]);
  return part;
}

/** For everything that the file says somebody has to set; as infra/compose/make-env.sh, which writes them for a real one. */
function madeUpSecrets(): Record<string, string> {
  const names = [...readFileSync(COMPOSE_FILE, "utf8").matchAll(/\$\{(\w+):?\?/g)].map(([, name = ""]) => name);
  return Object.fromEntries(names.map((name) => [name, randomBytes(20).toString("hex")]));
}

/** The keys of the file, each with the rights that docs/operations.md gives such a process. */
function s3UsersOf(
  names: readonly string[],
  service: (name: string) => ComposeService,
  bucket: string,
): Record<string, S3User> {
  const documented = readFileSync("docs/operations.md", "utf8").replaceAll("dream-blobs", bucket);
  const policies = [...documented.matchAll(/^```json\n(\{\n {2}"Version"[^]*?)^```$/gm)].map(([, json = ""]) => json);
  const [control = "", worker = ""] = policies;
  return Object.fromEntries(
    names.flatMap((name) => {
      const { AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret } = service(name).environment;
      if (id === undefined || secret === undefined) return []; // it has no blobs
      const policy = JSON.parse(name === "worker" ? worker : control) as object; // the documentation's tests read it, too
      return [[id, { secret, policy }]];
    }),
  );
}

/** By the deployment's own script: with an append-only file. */
function redisAs(environment: Readonly<Record<string, string>>): RedisStart {
  return {
    password: environment["REDIS_PASSWORD"] ?? null,
    argv: () => ["sh", "infra/compose/redis-start.sh"],
    env: ({ port, dir }) => ({
      ...environment,
      REDIS_PORT: String(port),
      REDIS_FOLDER: dir,
      REDIS_CONFIG: join(dir, "redis.conf"),
    }),
  };
}

const hostOf = (url: string): string => new URL(url).host;

/** Where a service of the file is on this machine. */
function readdress(value: string, addresses: Readonly<Record<keyof typeof HOSTS, string>>): string {
  return Object.entries(HOSTS).reduce(
    (text, [name, host]) => text.replaceAll(host, addresses[name as keyof typeof HOSTS]), // a key of HOSTS
    value,
  );
}

/** What PostgreSQL's own image does with POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB. */
async function makeOwner(superuserUrl: string, ownerUrl: string, log: Log): Promise<void> {
  const { username, password, pathname } = new URL(ownerUrl);
  const owner = escapeIdentifier(decodeURIComponent(username));
  const superuser = createDatabase({ url: superuserUrl, log });
  try {
    const secret = escapeLiteral(decodeURIComponent(password));
    await superuser.query(`CREATE ROLE ${owner} LOGIN SUPERUSER PASSWORD ${secret}`);
    await superuser.query(`CREATE DATABASE ${escapeIdentifier(pathname.slice(1))} OWNER ${owner}`);
  } finally {
    await superuser.stop();
  }
}
