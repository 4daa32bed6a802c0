import { expect, test } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import { createTurns } from "#rollouts/turns.ts";

const [ONE, OTHER] = ["cus_one", "cus_other"] as CustomerId[] as [CustomerId, CustomerId]; // as if made

test("one at a time for each customer, in the order of their coming, and no customer waits for another", async () => {
  const turns = createTurns();
  const gate = Promise.withResolvers<void>();
  const doings: string[] = [];
  const work =
    (name: string, until: Promise<void> = Promise.resolve()) =>
    async (): Promise<string> => {
      doings.push(`${name} begins`);
      await until;
      doings.push(`${name} ends`);
      return name;
    };
  const ones = [turns.inTurn(ONE, work("a", gate.promise)), turns.inTurn(ONE, work("b")), turns.inTurn(ONE, work("c"))];
  expect(await turns.inTurn(OTHER, work("x"))).toBe("x");
  expect(doings).toEqual(["a begins", "x begins", "x ends"]);
  gate.resolve();
  expect(await Promise.all(ones)).toEqual(["a", "b", "c"]);
  expect(doings.slice(3)).toEqual(["a ends", "b begins", "b ends", "c begins", "c ends"]);
  expect(await turns.inTurn(ONE, work("d"))).toBe("d");
});

test("a failure is its own caller's alone, and the next have their turn", async () => {
  const turns = createTurns();
  const failing = turns.inTurn(ONE, () => Promise.reject(new Error("broken")));
  const next = turns.inTurn(ONE, () => Promise.resolve("next"));
  await expect(failing).rejects.toThrow("broken");
  expect(await next).toBe("next");
});

test("whose turn does not come in time is told so and never begins; those after it still do", async () => {
  const turns = createTurns(50);
  const gate = Promise.withResolvers<void>();
  const hanging = turns.inTurn(ONE, () => gate.promise);
  let began = false;
  const late = turns.inTurn(ONE, () => {
    began = true;
    return Promise.resolve();
  });
  await expect(late).rejects.toMatchObject({ code: "ledger_unavailable" });
  const after = turns.inTurn(ONE, () => Promise.resolve("after"));
  gate.resolve();
  await hanging;
  expect(await after).toBe("after");
  expect(began).toBe(false);
});
