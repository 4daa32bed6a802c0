/**
 * This process's row in `gateway_leases`, renewed while it lives. Rollouts that someone waits for name it; when it is
 * not renewed any more, the sweep knows that their callers are gone.
 */
import type { RandomBytes } from "#contract/ids.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { dropLease, renewLease } from "#rollouts/leases.ts";

const RENEW_EVERY_MS = 2_000;

export interface Lease extends Service {
  readonly id: string;
}

/** Resolves when the lease is in force; `stop` gives it back, which is for a gateway that has answered everyone. */
export async function startLease(db: Database, random: RandomBytes, log: Log): Promise<Lease> {
  const id = `gateway_${Buffer.from(random(8)).toString("hex")}`;
  await renewLease(db, id);
  let renewal = Promise.resolve();
  let busy = false;
  const timer = setInterval(() => {
    // A renewal that hangs must not pile others up behind it.
    if (busy) return;
    busy = true;
    renewal = renewLease(db, id)
      .catch((error: unknown) => log.warn({ err: error }, "could not renew the gateway's lease; will try again"))
      .finally(() => {
        busy = false;
      });
  }, RENEW_EVERY_MS);
  return {
    id,
    async stop() {
      clearInterval(timer);
      await renewal;
      await dropLease(db, id);
    },
  };
}
