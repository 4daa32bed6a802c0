/** `dream-engine settlement`: the role that writes outcomes into the ledger. */
import type { Command } from "commander";

import { moneyMetricsOf } from "#ledger/metrics.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { startSettlementWorker } from "#workers/settlement/worker.ts";

import { openShared, runRole } from "../context.ts";

export function addSettlement(program: Command): void {
  program
    .command("settlement")
    .description("run one settlement worker (needs DATABASE_URL; REDIS_URL as the other roles have it)")
    .action(() =>
      runRole("settlement", async (config, log, parts) => {
        const { db, queues } = await openShared("settlement", config, log, parts);
        const registry = createRegistry("settlement");
        const money = moneyMetricsOf(registry);
        parts.push(["settlement", await startSettlementWorker({ db, queues, money, log })]);
        const { METRICS_PORT: port, HOST: host } = config;
        const metrics = await startMetricsServer({ port, host, registry, log, ready: () => true });
        parts.push(["metrics", metrics]);
        log.info({ metrics_port: metrics.port }, "metrics are served");
      }),
    );
}
