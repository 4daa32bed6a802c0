/** The gateway on a port. */
import type { AddressInfo } from "node:net";

import type { Service } from "#platform/lifecycle.ts";

import { createGateway } from "./app.ts";
import { DEFAULT_BOUNDS, type GatewayOptions } from "./gateway-parts.ts";

export interface ListenOptions {
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
}

/** Rejects when the port is taken. `stop()` lets waiting calls finish for a while, then cancels and refunds them. */
export async function startGateway(
  options: GatewayOptions & ListenOptions,
): Promise<Service & { readonly url: string }> {
  const { host, port, bounds = DEFAULT_BOUNDS, log } = options;
  const gateway = await createGateway(options);
  const { app } = gateway;
  try {
    await app.listen({ host, port });
  } catch (error) {
    await app.close();
    throw error;
  }
  const { port: bound } = app.server.address() as AddressInfo; // a server that listens on TCP has one
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${bound}`;
  log.info({ url }, "gateway listens");
  const problem = halfOfStripe(options.config);
  if (problem !== null) log.warn(problem);

  async function stop(): Promise<void> {
    gateway.drain();
    const cancel = setTimeout(() => gateway.cancelWaiting(), bounds.drainMs);
    // Answers to cancelled calls get a moment, then their connections go.
    const cut = setTimeout(() => app.server.closeAllConnections(), bounds.drainMs + LAST_ANSWERS_MS);
    try {
      await app.close();
    } finally {
      clearTimeout(cancel);
      clearTimeout(cut);
    }
  }
  let stopped: Promise<void> | undefined;
  return { url, stop: () => (stopped ??= stop()) };
}

const LAST_ANSWERS_MS = 2_000;

/** What an operator should know who has set one of Stripe's two settings and not the other; null where there is nothing. */
export function halfOfStripe(
  config: Pick<GatewayOptions["config"], "STRIPE_SECRET_KEY" | "STRIPE_WEBHOOK_SECRET">,
): string | null {
  const { STRIPE_SECRET_KEY: key, STRIPE_WEBHOOK_SECRET: secret } = config;
  if ((key === undefined) === (secret === undefined)) return null;
  const [set, unset] =
    secret === undefined
      ? ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"]
      : ["STRIPE_WEBHOOK_SECRET", "STRIPE_SECRET_KEY"];
  return `${set} is set and ${unset} is not: nobody can top up by card until both are`;
}
