/** Ctrl-C in a customer's command: what is under way is broken off, and the last words say what goes on without us. */
import { untilToldToStop } from "#platform/lifecycle.ts";

import { EXIT } from "./exit-codes.ts";
import { UserError } from "./user-error.ts";

class Interrupted extends UserError {
  override readonly name = "Interrupted";
  override readonly exitCode = EXIT.interrupted;
}

/** `lastWords` may still do something, such as cancel; a second Ctrl-C ends that, too. */
export async function interruptible<T>(
  work: (signal: AbortSignal) => Promise<T>,
  lastWords: () => Promise<string> | string,
): Promise<T> {
  const controller = new AbortController();
  void untilToldToStop().then(() => controller.abort());
  try {
    return await work(controller.signal);
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    throw new Interrupted(await lastWords(), { cause: error });
  }
}
