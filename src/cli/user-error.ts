import { EXIT, type ExitCode } from "./exit-codes.ts";

/** A problem that the person at the terminal can solve: printed as its message alone, without a stack. */
export class UserError extends Error {
  override readonly name: string = "UserError";
  /** What the process ends with. */
  readonly exitCode: ExitCode = EXIT.error;
}
