/** What the containers of docker-compose.yml may do and reach, what they are made of, and that Compose itself accepts it. */
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";

import { composeFile, networksOf, serviceOf, type WithSecrets, withSecrets } from "./compose-file.ts";

const run = promisify(execFile);
const SERVICES = Object.keys(composeFile.services);
const PROCESSES = ["gateway", "scheduler", "settlement", "runner", "notifier", "worker"];
/** They do their work once. */
const RESTARTS: Readonly<Record<string, string>> = { setup: "on-failure:3", bucket: "on-failure:3", operator: "no" };
const PUBLISHED: Readonly<Record<string, readonly string[]>> = {
  gateway: ["127.0.0.1:8080:8080"],
  grafana: ["127.0.0.1:3000:3000"],
};
/** Networks with a way out of the machine, or in. */
const OUTSIDE: Readonly<Record<string, readonly string[]>> = {
  gateway: ["edge"],
  grafana: ["edge"],
  scheduler: ["outbound"],
  runner: ["outbound"],
  notifier: ["outbound"],
  operator: ["outbound"],
};

let compose: WithSecrets;
beforeAll(async () => {
  compose = await withSecrets();
});
afterAll(() => compose.remove());

describe.each(SERVICES)("%s", (name) => {
  const service = serviceOf(name);

  test("may do the least, and is started again where it ended", () => {
    expect(service).toMatchObject({ read_only: true, cap_drop: ["ALL"], security_opt: ["no-new-privileges:true"] });
    expect(service.restart).toBe(RESTARTS[name] ?? "unless-stopped");
    expect(service.image).toMatch(/^[\w./-]+:(?!latest)[\w.${}:-]+$/);
  });

  test("reaches what it needs, and is reached from this machine alone", () => {
    const ports = service.ports?.map((port) => port.replaceAll(/\$\{\w+:-(\d+)\}/g, "$1"));
    expect(ports).toEqual(PUBLISHED[name]);
    const networks = networksOf(name);
    expect(networks.filter((network) => !(network in composeFile.networks))).toEqual([]);
    expect(networks.filter((network) => composeFile.networks[network]?.internal !== true)).toEqual(OUTSIDE[name] ?? []);
    const urls = Object.values(compose.environmentOf(name)).join(" ");
    expect(networks.includes("database")).toBe(name === "postgres" || urls.includes("@postgres:"));
    expect(networks.includes("queue")).toBe(name === "redis" || urls.includes("@redis:"));
    expect(networks.includes("blobs")).toBe(name === "s3" || urls.includes("//s3:"));
  });

  test("mounts what is here, and waits for what comes", () => {
    const mounted = (service.volumes ?? []).flatMap((volume) =>
      typeof volume === "string" ? volume.split(":", 1) : [],
    );
    const missing = mounted.filter((from) => !(from.startsWith("./") ? existsSync(from) : from in composeFile.volumes));
    expect(missing).toEqual([]);
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      expect(condition).toBe(other in RESTARTS ? "service_completed_successfully" : "service_healthy");
      expect(serviceOf(other).profiles).toBeUndefined();
    }
  });
});

test("each image of ours is built by one service, from a file that is here", () => {
  const builders = SERVICES.filter((name) => serviceOf(name).build);
  expect(builders).toEqual(["s3", "setup", "worker", "worker-gpu"]);
  const built = builders.map((name) => serviceOf(name).image);
  expect(new Set(built).size).toBe(built.length);
  for (const { context, dockerfile, target } of builders.flatMap((name) => serviceOf(name).build ?? [])) {
    const recipe = readFileSync(join(context, dockerfile), "utf8");
    expect(recipe).toMatch(target === undefined ? /^FROM \S+$/m : new RegExp(`^FROM \\S+ AS ${target}$`, "m"));
  }
  const ours = SERVICES.map((name) => serviceOf(name).image).filter((image) => image.startsWith("dream-engine"));
  expect([...new Set(ours)].toSorted()).toEqual(built.toSorted());
});

test("Prometheus asks every process for its metrics, where it shows them", () => {
  const { scrape_configs } = parse(readFileSync("infra/compose/prometheus.yml", "utf8")) as {
    scrape_configs: { job_name: string; dns_sd_configs: { names: string[]; port: number }[] }[];
  };
  const asked = scrape_configs.map(({ job_name, dns_sd_configs: [dns] }) => [job_name, dns?.names, dns?.port]);
  const [, metricsPort] = /METRICS_PORT=(\d+)/.exec(readFileSync("infra/docker/engine.Dockerfile", "utf8")) ?? [];
  expect(asked).toEqual(
    PROCESSES.map((name) => [`dream-${name}`, [name], name === "gateway" ? 8080 : Number(metricsPort)]),
  );
  for (const name of [...PROCESSES, "prometheus", "grafana"]) expect(networksOf(name)).toContain("metrics");
  expect(compose.environmentOf("gateway")).toMatchObject({ PORT: "8080", HEALTH_PORT: "8080" });
});

/** `docker compose`, or the program in DOCKER_COMPOSE (docs/deployment.md says how to build one without Docker). */
const [program = "", ...subcommand] = process.env["DOCKER_COMPOSE"]?.split(" ") ?? ["docker", "compose"];
const composeWorks = await run(program, [...subcommand, "version"]).then(
  () => true,
  () => false, // not installed
);
const resolve = (envFile: string) =>
  run(program, [...subcommand, "--env-file", envFile, "--profile", "*", "config", "--format", "json"]);

test.skipIf(!composeWorks)("Compose accepts it, and refuses to start without secrets", async () => {
  const { stdout } = await resolve(compose.envFile);
  const { services } = JSON.parse(stdout) as { services: Record<string, { environment?: Record<string, string> }> };
  expect(Object.keys(services).toSorted()).toEqual(SERVICES.toSorted());
  // Our reading of the file, which other tests and the topology rest on, is Compose's own.
  for (const name of SERVICES) expect(services[name]?.environment ?? {}).toEqual(compose.environmentOf(name));
  await expect(resolve("/dev/null")).rejects.toThrow("make-env.sh");
});
