/** What happened to a pool, in words. */
import type { PoolEvent } from "./events.ts";
import { type Reason, reasonText } from "./reason.ts";

export function eventText({ kind, detail }: Pick<PoolEvent, "kind" | "detail">): string {
  if (kind === "scaled") {
    const { from, to, reason } = detail;
    return `${text(from)} → ${text(to)} workers${isReason(reason) ? `: ${reasonText(reason)}` : ""}`;
  }
  return Object.entries(detail)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => `${name.replaceAll("_", " ")}: ${text(value)}`)
    .join(", ");
}

/** As the scheduler wrote it; another version's kinds read as their names. */
const isReason = (value: unknown): value is Reason => typeof value === "object" && value !== null && "kind" in value;

const text = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));
