/** What is counted of the backlog, and for how long a count holds. */
import { expect, test } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import type { Database } from "#platform/database.ts";
import { createBacklogGuard } from "#gateway/backlog-guard.ts";

const SLOW = "cus_slow" as CustomerId;
const OTHER = "cus_other" as CustomerId;

test("a customer whose backlog takes long to count keeps nobody else's count for longer", async () => {
  let nowMs = 1_000_000;
  const waiting = new Map([
    [SLOW, 2],
    [OTHER, 3],
  ]);
  const query = async (text: string, [, , customer]: readonly unknown[]): Promise<unknown[]> => {
    if (!text.includes("AS own")) return text.includes("AS counted") ? [{ count: 5 }] : [];
    if (customer === SLOW) nowMs += 500;
    return [{ count: waiting.get(customer as CustomerId) }];
  };
  const guard = createBacklogGuard({
    db: { query } as unknown as Database,
    clock: { now: () => nowMs },
    limits: { per_customer: 3, all: 100 },
    status: {
      outlookOf: async () => ({
        pool: null,
        per_second: 0,
        in_flight: { realtime: { rollouts: 0, samples: 0 }, bulk: { rollouts: 0, samples: 0 } },
        cold_start_s: 0,
      }),
    },
  });
  const enter = (customer_id: CustomerId) => guard.enter({ model: "m", lane: "bulk", customer_id });
  await enter(SLOW);
  await expect(enter(OTHER)).rejects.toMatchObject({ code: "too_many_waiting" });
  nowMs += 2_000;
  waiting.set(SLOW, 0).set(OTHER, 0);
  await enter(OTHER);
  // Its own count is kept, and full by the one that was let in.
  await expect(enter(SLOW)).rejects.toMatchObject({ code: "too_many_waiting" });
});
