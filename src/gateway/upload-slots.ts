/** How many datasets come in at once: each holds some megabytes, a connection of the pool now and then, and disk. */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";

const AT_ONCE_MAX = 8;
const OF_CUSTOMER_AT_ONCE_MAX = 4;
const RETRY_AFTER_S = 10;

export interface UploadSlots {
  /** Gives the function that gives it back. Throws ApiError: rate_limited for a customer's own, no_capacity for all. */
  take(customer: CustomerId): () => void;
}

export function createUploadSlots(atOnce = AT_ONCE_MAX, ofCustomer = OF_CUSTOMER_AT_ONCE_MAX): UploadSlots {
  const held = new Map<CustomerId, number>();
  let all = 0;
  return {
    take(customer) {
      const own = held.get(customer) ?? 0;
      const headers = { "Retry-After": String(RETRY_AFTER_S) };
      if (own >= ofCustomer) {
        throw new ApiError("rate_limited", `expected at most ${ofCustomer} datasets that are sent at once`, {
          headers,
        });
      }
      if (all >= atOnce) {
        throw new ApiError("no_capacity", "too many datasets are being received; try again in a moment", { headers });
      }
      held.set(customer, own + 1);
      all += 1;
      return () => {
        const left = (held.get(customer) ?? 1) - 1;
        if (left === 0) held.delete(customer);
        else held.set(customer, left);
        all -= 1;
      };
    },
  };
}
