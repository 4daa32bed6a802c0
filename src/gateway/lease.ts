/**
 * This process's row in `gateway_leases`, renewed while it lives. Rollouts that someone waits for name it; when it is
 * not renewed any more, the sweep knows that their callers are gone.
 *
 * Renewed on a connection of its own: one that died silently keeps a statement waiting for longer than a lease lasts, and
 * in the pool a renewal would wait behind others that it happened to.
 */
import type { RandomBytes } from "#contract/ids.ts";
import { within } from "#platform/bounded.ts";
import type { Connection } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { dropLease, renewLease } from "#rollouts/leases.ts";

const RENEW_EVERY_MS = 2_000;
/** For connecting and for each statement: a lease outlasts one that hangs, and the try after it. */
export const LEASE_TIMEOUT_MS = 3_000;

export interface Lease extends Service {
  readonly id: string;
}

export interface LeaseOptions {
  /** Takes at most LEASE_TIMEOUT_MS. */
  readonly connect: () => Promise<Connection>;
  readonly random: RandomBytes;
  readonly log: Log;
}

/** Resolves when the lease is in force; `stop` gives it back, which is for a gateway that has answered everyone. */
export async function startLease({ connect, random, log }: LeaseOptions): Promise<Lease> {
  const id = `gateway_${Buffer.from(random(8)).toString("hex")}`;
  let connection: Connection | undefined;

  /** After a failure the next call connects anew. */
  async function onConnection(write: typeof renewLease): Promise<void> {
    const own = (connection ??= await connect());
    try {
      await within(LEASE_TIMEOUT_MS, "writing the gateway's lease", write(own, id));
    } catch (error) {
      connection = undefined;
      own.close();
      throw error;
    }
  }

  await onConnection(renewLease);
  let renewal = Promise.resolve();
  let busy = false;
  const timer = setInterval(() => {
    // A renewal that takes its time must not pile others up behind it.
    if (busy) return;
    busy = true;
    renewal = onConnection(renewLease)
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
      await onConnection(dropLease);
      connection?.close();
    },
  };
}
