import { get } from "node:http";

import { Counter } from "prom-client";
import { expect, test } from "vitest";

import { createRegistry, startMetricsServer } from "#platform/metrics.ts";

import { silentLog } from "../support/postgres.ts";

test("a process without a gateway shows its metrics, its health, and whether it is ready", async () => {
  const registry = createRegistry("test-role");
  new Counter({ name: "things_total", help: "things", registers: [registry] }).inc();
  let isReady = false;
  const server = await startMetricsServer({ port: 0, registry, log: silentLog, ready: () => isReady });
  const get = (path: string): Promise<Response> => fetch(`http://127.0.0.1:${server.port}${path}`);

  const metrics = await get("/metrics");
  expect(metrics.headers.get("content-type")).toContain("text/plain");
  const text = await metrics.text();
  expect(text).toContain('things_total{role="test-role"} 1');
  expect(text).toContain("process_cpu_seconds_total");
  expect((await get("/healthz")).status).toBe(200);
  expect((await get("/readyz")).status).toBe(503);
  isReady = true;
  expect((await get("/readyz")).status).toBe(200);
  expect((await get("/elsewhere")).status).toBe(404);

  await server.stop();
  await expect(get("/healthz")).rejects.toThrow("fetch failed");
});

test("what is no path is answered like any other, and ends nothing", async () => {
  const server = await startMetricsServer({
    port: 0,
    registry: createRegistry("test-role"),
    log: silentLog,
    ready: () => true,
  });
  for (const path of ["//", "http://[/metrics", "*"]) {
    const answer = await new Promise<number | undefined>((resolve, reject) => {
      get({ port: server.port, path }, (response) => resolve(response.resume().statusCode)).on("error", reject);
    });
    expect([path, answer]).toEqual([path, 404]);
  }
  await server.stop();
});

test("a port that is taken rejects the start", async () => {
  const registry = createRegistry("test-role");
  const options = { registry, log: silentLog, ready: () => true };
  const first = await startMetricsServer({ ...options, port: 0 });
  await expect(startMetricsServer({ ...options, port: first.port })).rejects.toThrow("EADDRINUSE");
  await first.stop();
});
