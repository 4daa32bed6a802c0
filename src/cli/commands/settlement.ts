/** `dream-engine settlement`: the role that writes outcomes into the ledger. */
import type { Command } from "commander";

import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { openQueues } from "#queue/open-queues.ts";
import { startSettlementWorker } from "#workers/settlement/worker.ts";

import { openDatabase, requireDatabaseUrl, runRole } from "../context.ts";

export function addSettlement(program: Command): void {
  program
    .command("settlement")
    .description("run one settlement worker (needs DATABASE_URL; REDIS_URL as the other roles have it)")
    .action(() =>
      runRole("settlement", async (config, log, parts) => {
        requireDatabaseUrl(config);
        const { db, url } = await openDatabase(config, log, parts);
        const queues = await openQueues({ redis_url: config.REDIS_URL, database_url: url, migrate: true, log });
        parts.push(["queues", queues]);
        parts.push(["settlement", await startSettlementWorker({ db, queues, log })]);
        const registry = createRegistry("settlement");
        const { METRICS_PORT: port, HOST: host } = config;
        parts.push(["metrics", await startMetricsServer({ port, host, registry, log, ready: () => true })]);
      }),
    );
}
