/** Months as people name them, in UTC. */
import { ApiError } from "#contract/errors.ts";

/** 2026-11 */
export const monthOf = (at: Date): string => at.toISOString().slice(0, 7);

/** In UTC. Throws ApiError(invalid_request). */
export function monthRange(month: string): { readonly from: Date; readonly until: Date } {
  const [, year, number] = /^(2\d{3})-(0[1-9]|1[0-2])$/.exec(month) ?? [];
  if (year === undefined || number === undefined) {
    throw new ApiError(
      "invalid_request",
      `month: expected one such as 2026-11, got ${JSON.stringify(month.slice(0, 40))}`,
    );
  }
  return {
    from: new Date(Date.UTC(Number(year), Number(number) - 1)),
    until: new Date(Date.UTC(Number(year), Number(number))),
  };
}
