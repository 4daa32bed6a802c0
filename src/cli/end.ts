/** How a command ends: 0, or a message for a person on stderr and what the error ends a process with (1). */
import { ApiError } from "#contract/errors.ts";
import { BundleError } from "#platform/bundles.ts";
import { ConfigError } from "#platform/config.ts";
import { errorCode } from "#platform/error-code.ts";
import { withoutSecrets } from "#platform/log.ts";

import { EXIT } from "./exit-codes.ts";
import { UserError } from "./user-error.ts";

/** Errors whose message says all that a person needs; of others the stack is printed too. */
const EXPECTED = [UserError, ConfigError, BundleError, ApiError, RangeError];

export async function endWith(work: Promise<unknown>): Promise<void> {
  for (const stream of [process.stdout, process.stderr]) {
    // A reader that has seen enough (`| head`) is no reason to break off what is being done, nor for a stack.
    stream.on("error", (error) => {
      if (errorCode(error) !== "EPIPE") throw error;
    });
  }
  try {
    await work;
    process.exitCode ??= 0;
  } catch (error) {
    process.stderr.write(`\n${withoutSecrets(describe(error))}\n`);
    process.exitCode = error instanceof UserError ? error.exitCode : EXIT.error;
  }
  // A handle that somebody forgot must not keep a finished command alive; stdout is flushed first.
  process.stdout.write("", () => process.exit());
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (EXPECTED.some((type) => error instanceof type)) return error.message;
  const cause = error.cause instanceof Error ? `\ncaused by: ${error.cause.stack ?? error.cause.message}` : "";
  return `${error.stack ?? error.message}${cause}`;
}
