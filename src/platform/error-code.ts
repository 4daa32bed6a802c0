/** The `code` of a Node system error or a PostgreSQL error, such as ENOENT or 28P01. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
