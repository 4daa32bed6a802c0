/** A problem that the person at the terminal can solve: printed as its message alone, without a stack. */
export class UserError extends Error {
  override readonly name = "UserError";
}

/** The `code` of a Node system error or a PostgreSQL error, such as ENOENT or 28P01. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
