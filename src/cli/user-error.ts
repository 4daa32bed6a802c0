/** A problem that the person at the terminal can solve: printed as its message alone, without a stack. */
export class UserError extends Error {
  override readonly name = "UserError";
}
