/** Prometheus metrics, and the small HTTP server that shows them in processes without a gateway. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import { collectDefaultMetrics, Registry } from "prom-client";

import type { Service } from "./lifecycle.ts";
import type { Log } from "./log.ts";

/** One registry a process: no global one, so that tests and `serve` can hold several. */
export function createRegistry(role: string): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ role });
  collectDefaultMetrics({ register: registry });
  return registry;
}

export interface SmallRequest {
  readonly method: string;
  /** Without a query. */
  readonly path: string;
  /** The header of that name. */
  readonly authorization: string | undefined;
  readonly fromLoopback: boolean;
}

/** Sent as JSON. */
export interface SmallAnswer {
  readonly status: number;
  readonly body: object;
}

export interface MetricsServerOptions {
  /** 0 picks a free one. */
  readonly port: number;
  /** Address to listen on; loopback unless told, because the answers name queue depths and traffic. */
  readonly host?: string;
  readonly registry: Registry;
  readonly log: Log;
  /** What /readyz answers: 200 while true, else 503. */
  readonly ready: () => boolean;
  /** What this process is asked beside that; null: not by this path. */
  readonly also?: (request: SmallRequest) => Promise<SmallAnswer | null> | SmallAnswer | null;
}

/** `/metrics`, `/healthz` and `/readyz` on a port of their own. */
export async function startMetricsServer(options: MetricsServerOptions): Promise<Service & { readonly port: number }> {
  const { registry, log, ready } = options;

  async function answer(request: IncomingMessage, path: string, response: ServerResponse): Promise<void> {
    switch (path) {
      case "/metrics":
        response.writeHead(200, { "content-type": registry.contentType }).end(await registry.metrics());
        return;
      case "/healthz":
        response.writeHead(200).end("ok\n");
        return;
      case "/readyz":
        response.writeHead(ready() ? 200 : 503).end(ready() ? "ready\n" : "not ready\n");
        return;
      default: {
        const also = (await options.also?.(smallRequest(request, path))) ?? null;
        if (also === null) response.writeHead(404).end("expected /metrics, /healthz or /readyz\n");
        else response.writeHead(also.status, { "content-type": "application/json" }).end(JSON.stringify(also.body));
      }
    }
  }

  const server = createServer((request, response) => {
    // What cannot be read, such as "//", is a path of nobody's.
    const path = URL.parse(request.url ?? "/", "http://localhost")?.pathname ?? "";
    answer(request, path, response).catch((error: unknown) => {
      log.error({ err: error, path }, "could not answer");
      response.destroy();
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host ?? "127.0.0.1", resolve);
  });
  server.on("error", (error) => log.error({ err: error }, "metrics server failed"));
  const { port } = server.address() as AddressInfo; // a server that listens on TCP has one
  log.debug({ port }, "metrics server listens");

  return {
    port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function smallRequest({ method = "GET", headers, socket }: IncomingMessage, path: string): SmallRequest {
  const { remoteAddress = "" } = socket;
  return { method, path, authorization: headers.authorization, fromLoopback: isLoopback(remoteAddress) };
}

const isLoopback = (address: string): boolean =>
  address === "::1" || address.replace(/^::ffff:/, "").startsWith("127.");
