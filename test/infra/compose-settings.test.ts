/**
 * What docker-compose.yml tells each process: settings that it takes, all that it reads and no more, and no secret but its
 * own. test/e2e/topology starts the processes by it.
 */
import { execFile } from "node:child_process";
import { existsSync, globSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { readConfig, SETTINGS } from "#platform/config.ts";
import { PARTS } from "#platform/roles.ts";
import { readWorkerSettings } from "#workers/inference/settings.ts";

import { bucketPolicy } from "../../infra/compose/make-bucket.ts";
import {
  composeFile,
  composeText,
  MAKE_ENV,
  readEnv,
  serviceOf,
  type WithSecrets,
  withSecrets,
} from "./compose-file.ts";

const run = promisify(execFile);

/** Where the code is that reads a process's settings, from the repository's root. */
const SOURCES: Readonly<Record<string, readonly string[]>> = {
  gateway: ["src/gateway/**/*.ts", "src/datasets/quotas.ts", "src/cli/commands/gateway.ts"],
  scheduler: ["scheduler/*.ts", "scheduler/{dispatch,scaling,sweep}/**/*.ts", "src/cli/commands/scheduler.ts"],
  settlement: ["workers/settlement/**/*.ts", "src/cli/commands/settlement.ts"],
  runner: ["workers/runner/**/*.ts", "src/cli/commands/runner.ts"],
  notifier: ["workers/notifier/**/*.ts", "src/cli/commands/notifier.ts"],
  worker: ["workers/inference/**/*.ts", "src/cli/commands/worker.ts", "src/cli/worker-access.ts"],
};
const PROCESSES = Object.keys(SOURCES);
/** What these read in the name of whoever calls them. */
const READ_BY: Readonly<Record<string, readonly string[]>> = {
  openShared: ["DATABASE_URL", "REDIS_URL"],
  openSharedDatabase: ["DATABASE_URL"],
  openBlobs: ["BLOB_URL", "S3_ENDPOINT", "S3_REGION"],
  retentionMsOf: ["RETENTION_DAYS"],
  datasetIdleMsOf: ["DATASET_IDLE_DAYS"],
  createStripe: ["STRIPE_SECRET_KEY"],
  backlogLimitsOf: ["BACKLOG_MAX_PER_CUSTOMER", "BACKLOG_MAX"],
};
/** The image has set them (infra/docker/engine.Dockerfile), or another value than their default has no sense here. */
const LEFT_ALONE = new Set([
  "HOST",
  "METRICS_PORT",
  "FFMPEG_PATH",
  "MODELS_DIR",
  "DATA_DIR",
  "AUTH",
  "OUTBOUND_PRIVATE",
  "S3_FORCE_PATH_STYLE",
  "STRIPE_API_BASE",
  "ORT_PROVIDERS",
]);
const LEFT_ALONE_BY: Readonly<Record<string, readonly string[]>> = {
  // In a hint for operators.
  gateway: ["WORKERS"],
  // Of fleets that are not here.
  scheduler: ["WORKERS", "WORKERS_MIN", "SCALEDOWN_S", "SCALING_TOKEN"],
  // On Redis it needs no database, and it gives nobody a link.
  worker: ["DATABASE_URL", "S3_PUBLIC_ENDPOINT"],
};
const BESIDE_THE_TABLE = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HEALTH_PORT"];
const WORKERS_OWN = ["MODEL", "DRAIN_S", "ENGINE_RUN_TIMEOUT_MS", "ENGINE_OPTIMISATIONS", "ORT_THREADS", "ORT_DEVICE"];

let compose: WithSecrets;
beforeAll(async () => {
  compose = await withSecrets();
});
afterAll(() => compose.remove());

const namesIn = (text: string, pattern: RegExp): string[] =>
  [...new Set([...text.matchAll(pattern)].map(([, name = ""]) => name))].toSorted();

describe(".env", () => {
  const required = namesIn(composeText, /\$\{(\w+):\?/g);
  const optional = namesIn(composeText, /\$\{(\w+):-/g);

  test("holds a secret of its own for everything that has to be set, and only its owner reads it", () => {
    const { variables, envFile } = compose;
    expect(Object.keys(variables).toSorted()).toEqual(required);
    expect(Object.values(variables).filter((value) => !/^[0-9a-f]{48}$/.test(value))).toEqual([]);
    expect(new Set(Object.values(variables)).size).toBe(required.length);
    expect(statSync(envFile).mode & 0o777).toBe(0o600);
  });

  test("is made again without changing what is there", async () => {
    const before = readFileSync(compose.envFile, "utf8");
    const [first = "", ...rest] = before.split("\n");
    const older = join(compose.folder, "older.env");
    writeFileSync(older, `${rest.join("\n")}GATEWAY_PORT=1`);
    await run("sh", [MAKE_ENV, older]);
    const { [first.split("=")[0] ?? ""]: added = "", ...kept } = readEnv(older);
    expect(added).toMatch(/^[0-9a-f]{48}$/);
    expect(kept).toEqual(
      Object.fromEntries([...rest, "GATEWAY_PORT=1"].filter(Boolean).map((line) => line.split("="))),
    );
    await run("sh", [MAKE_ENV, compose.envFile]);
    expect(readFileSync(compose.envFile, "utf8")).toBe(before);
  });

  test("is explained by .env.example, whether it has to be there or may", () => {
    const example = readFileSync(".env.example", "utf8");
    expect(namesIn(example, /^(\w+)=$/gm)).toEqual(required);
    expect(namesIn(example, /^# (\w+)=/gm)).toEqual(optional);
  });

  test("has every secret, and neither the file nor git has one", () => {
    const values = [...composeText.matchAll(/^ *\w*(?:PASSWORD|SECRET|TOKEN)\w*: (.*)$/gm)].map(
      ([, value = ""]) => value,
    );
    const passwords = [...composeText.matchAll(/:\/\/\w*:([^@\s]*)@/g)].map(([, password = ""]) => password);
    const texts = [
      ...values,
      ...passwords.map((password) => password.replace(":?run", ":?run infra/compose/make-env.sh}")),
    ];
    expect(values.length).toBeGreaterThan(15);
    expect(texts.filter((text) => !/^\$\{\w+:(\?run infra\/compose\/make-env\.sh|-)\}/.test(text))).toEqual([]);
    expect(readFileSync(".gitignore", "utf8").split("\n")).toContain(".env");
  });
});

describe.each(PROCESSES)("%s", (name) => {
  test("has settings that it takes, and none that nothing reads", () => {
    const environment = compose.environmentOf(name);
    expect(() => readConfig(environment)).not.toThrow();
    const known = [...Object.keys(SETTINGS), ...BESIDE_THE_TABLE, ...(name === "worker" ? WORKERS_OWN : [])];
    expect(Object.keys(environment).filter((key) => !known.includes(key))).toEqual([]);
  });

  test("is told everything that its code reads", () => {
    const code = globSync([...(SOURCES[name] ?? [])]).map((file) => readFileSync(file, "utf8"));
    const words = new Set(code.flatMap((source) => source.match(/\b[A-Za-z][A-Za-z0-9_]*\b/g) ?? []));
    const read = [
      ...Object.keys(SETTINGS).filter((key) => words.has(key)),
      ...Object.entries(READ_BY).flatMap(([helper, keys]) => (words.has(helper) ? keys : [])),
    ];
    expect(read.length).toBeGreaterThan(2);
    const told = new Set([...Object.keys(compose.environmentOf(name)), ...LEFT_ALONE, ...(LEFT_ALONE_BY[name] ?? [])]);
    expect([...new Set(read)].filter((key) => !told.has(key))).toEqual([]);
  });

  test("is the command of that name, after the setup", () => {
    const { command, depends_on } = serviceOf(name);
    expect(command).toEqual([name]);
    expect(existsSync(`src/cli/commands/${name}.ts`)).toBe(true);
    expect(depends_on).toMatchObject({
      setup: { condition: "service_completed_successfully" },
      redis: { condition: "service_healthy" },
      ...("BLOB_URL" in compose.environmentOf(name) ? { bucket: { condition: "service_completed_successfully" } } : {}),
    });
  });
});

test("a worker takes its own settings", () => {
  const environment = { ...compose.environmentOf("worker"), MODEL: "pusht-small" };
  expect(readWorkerSettings(environment)).toMatchObject({ model: "pusht-small", drainMs: 900_000 });
});

test("what several processes are told is the same", () => {
  const told = new Map<string, Set<string>>();
  for (const [key, value] of PROCESSES.flatMap((name) => Object.entries(compose.environmentOf(name)))) {
    told.set(key, (told.get(key) ?? new Set()).add(value));
  }
  const differ = [...told].flatMap(([key, values]) => (values.size > 1 ? [key] : []));
  expect(differ.toSorted()).toEqual(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"]);
});

test("each process has a database role and a key of its own, and holds nobody else's secret", () => {
  const { variables, environmentOf } = compose;
  const holdersOf = (secret: string): string[] =>
    Object.keys(composeFile.services).filter((name) =>
      Object.values(environmentOf(name)).some((text) => text.includes(variables[secret] ?? "none")),
    );
  for (const part of PARTS) {
    const { username, hostname } = new URL(environmentOf(part)["DATABASE_URL"] ?? "");
    expect([username, hostname]).toEqual([`dream_${part}`, "postgres"]);
    expect(holdersOf(`${part.toUpperCase()}_DB_PASSWORD`)).toEqual(["setup", part]);
  }
  for (const name of ["gateway", "scheduler", "runner", "notifier", "operator"]) {
    expect(environmentOf(name)["AWS_ACCESS_KEY_ID"]).toBe(`dream-${name}`);
    expect(holdersOf(`S3_${name.toUpperCase()}_SECRET`)).toEqual(["s3", name]);
  }
  expect(holdersOf("S3_WORKER_SECRET")).toEqual(["s3", "worker", "worker-gpu"]);
  expect(holdersOf("S3_ROOT_SECRET")).toEqual(["s3", "bucket"]);
  expect(holdersOf("POSTGRES_PASSWORD")).toEqual(["postgres", "setup", "operator"]);
  expect(holdersOf("OPERATOR_TOKEN")).toEqual(["gateway", "prometheus"]);
  expect(holdersOf("GRAFANA_PASSWORD")).toEqual(["grafana"]);
});

test("the bucket's policy gives the keys what the documentation says", () => {
  const documented = readFileSync("docs/operations.md", "utf8").matchAll(/^```json\n(\{\n {2}"Version"[^]*?)^```$/gm);
  const [control = [], worker = []] = [...documented].map(([, json = ""]) => rightsIn(JSON.parse(json), null));
  expect(control.length).toBeGreaterThan(worker.length);
  const policy = bucketPolicy("dream-blobs");
  for (const name of ["gateway", "scheduler", "runner", "operator"]) {
    expect(rightsIn(policy, `dream-${name}`)).toEqual(control);
  }
  expect(rightsIn(policy, "dream-worker")).toEqual(worker);
  expect(rightsIn(policy, "dream-notifier")).toEqual(
    ["s3:GetObject", "s3:ListBucket"].map((action) => expect.stringMatching(`^${action} `)),
  );
  const { S3_USERS = "" } = compose.environmentOf("s3");
  const users = S3_USERS.split(/\s+/).map((user) => user.split(":")[0] ?? "");
  expect(users.toSorted()).toEqual([...new Set(JSON.stringify(policy).match(/dream-(?!blobs)\w+/g))].toSorted());
});

/** "action resource" of every statement, or of those for that key. */
function rightsIn(policy: unknown, key: string | null): string[] {
  const { Statement } = policy as {
    Statement: { Action: string | string[]; Resource: string; Principal?: { AWS: string[] } }[];
  };
  return Statement.filter(({ Principal }) => key === null || Principal?.AWS.includes(key) === true)
    .flatMap(({ Action, Resource }) => [Action].flat().map((action) => `${action} ${Resource}`))
    .toSorted();
}
