/** A counting semaphore, first come first served. */
import { strict as assert } from "node:assert";

export interface Slots {
  /** Waits for a slot; the function gives it back, once. */
  take(): Promise<() => void>;
}

export function createSlots(count: number): Slots {
  assert(count >= 1);
  let free = count;
  const waiting: (() => void)[] = [];

  function giveBack(): void {
    const next = waiting.shift();
    if (next) next();
    else free += 1;
  }

  return {
    async take() {
      if (free > 0) free -= 1;
      else await new Promise<void>((resolve) => waiting.push(resolve));
      let given = false;
      return () => {
        assert(!given, "a slot is given back once");
        given = true;
        giveBack();
      };
    },
  };
}
