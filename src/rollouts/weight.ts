/** The share of a customer in dispatch: twice the weight is given twice the frames, while others wait too. */
import { ApiError } from "#contract/errors.ts";
import type { Sql } from "#platform/database.ts";

/** The range that migration 0005 allows. */
export const WEIGHT_MIN = 1;
export const WEIGHT_MAX = 100;

/** Holds from the next rollout on that is dispatched. Returns the weight before. */
export async function setDispatchWeight(tx: Sql, customerId: string, weight: number): Promise<number> {
  const [customer] = await tx.query<{ before: number }>(
    `UPDATE customers c SET dispatch_weight = $2
       FROM (SELECT id, dispatch_weight AS before FROM customers WHERE id = $1 FOR UPDATE) AS old
      WHERE c.id = old.id RETURNING old.before`,
    [customerId, weight],
  );
  if (!customer) throw new ApiError("not_found", `there is no customer ${customerId}`);
  return customer.before;
}
