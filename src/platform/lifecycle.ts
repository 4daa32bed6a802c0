/**
 * Every long-lived part has the same life: its factory (`create…`) or `start…` function resolves when it runs,
 * and `stop()` is idempotent, waits until nothing of it runs any more, and is bounded in time.
 */
import { within } from "./bounded.ts";
import type { Log } from "./log.ts";

export interface Service {
  stop(): Promise<void>;
}

/** How long one part may take to stop before the process goes on without it. */
const STOP_TIMEOUT_MS = 10_000;

/** Stops services in reverse order of their start, each within a bound; a failure is logged and does not stop the rest. */
export async function stopAll(
  services: readonly (readonly [name: string, service: Service])[],
  log: Log,
): Promise<void> {
  for (const [name, service] of services.toReversed()) {
    try {
      await within(STOP_TIMEOUT_MS, `stopping ${name}`, service.stop());
    } catch (error) {
      log.error({ err: error, service: name }, "could not stop cleanly");
    }
  }
}

/** One Ctrl-C reaches a process several times: from the terminal, and passed on by the launcher and by npm. */
const SAME_KEY_PRESS_MS = 500;

/**
 * Resolves at the first SIGINT, SIGTERM or SIGHUP. A second one ends the process at once: whoever presses Ctrl-C
 * twice means it, and every promise we make survives a SIGKILL anyway.
 */
export function untilToldToStop(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let toldAtMs: number | undefined;
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      process.on(signal, () => {
        if (toldAtMs !== undefined && performance.now() - toldAtMs > SAME_KEY_PRESS_MS) process.exit(130);
        toldAtMs ??= performance.now();
        resolve(signal);
      });
    }
  });
}
