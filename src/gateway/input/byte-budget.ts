/** How many bytes of bodies this process holds at once, whoever sends them. */
import { ApiError } from "#contract/errors.ts";

/** 32 of the largest bodies there may be, or thousands of usual ones. */
const HELD_BYTES_MAX = 1024 * 1024 * 1024;

export interface ByteBudget {
  /** Throws ApiError(no_capacity) when there is no room. */
  take(bytes: number): void;
  give(bytes: number): void;
}

export function createByteBudget(maxBytes = HELD_BYTES_MAX): ByteBudget {
  let held = 0;
  return {
    take(bytes) {
      if (held + bytes > maxBytes) throw new ApiError("no_capacity", "too many uploads at once; try again in a moment");
      held += bytes;
    },
    give(bytes) {
      held -= bytes;
    },
  };
}
