/** One step after the other: every answer and every final state is the model's, whatever the database does meanwhile. */
import { isDeepStrictEqual } from "node:util";

import { expect } from "vitest";

import { createModel } from "./auditor-model.ts";
import { createSystem, type SystemParts } from "./auditor-system.ts";
import { type FaultyDatabase, withFault } from "./database-faults.ts";
import { CUSTOMERS, KEYS, STARTING_CREDIT, type Step } from "./histories.ts";

export async function checkSequential(lane: SystemParts & FaultyDatabase, history: readonly Step[]): Promise<void> {
  let model = createModel(CUSTOMERS, KEYS);
  const real = await createSystem(lane, CUSTOMERS, KEYS);
  const customers = real.customers.map(({ id }) => id);
  for (let customer = 0; customer < CUSTOMERS; customer++) {
    const start = { do: "grant", customer, payment: 99, amount: STARTING_CREDIT } as const;
    // Again where a busy machine let its statements' time run out: then nothing happened.
    await expect.poll(() => real.apply(start), { timeout: 10_000 }).toEqual(model.apply(start));
  }
  for (const { operation, fault } of history) {
    const after = model.clone();
    const reply = after.apply(operation);
    const answer = await withFault(lane, fault, customers, () => real.apply(operation));
    if (answer === "unknown") {
      // One of two worlds, whole: it took effect, or it did not.
      await real.findLost();
      const books = await real.snapshot();
      if (isDeepStrictEqual(books, after.snapshot())) model = after;
      else expect({ operation, books }).toEqual({ operation, books: model.snapshot() });
    } else if (answer !== "failed") {
      expect({ operation, answer }).toEqual({ operation, answer: reply });
      model = after;
    } // `failed`: nothing happened, as the next comparison confirms.
  }
  expect(await real.snapshot()).toEqual(model.snapshot());
}
