/** A dataset in words. */
import { mils, usdText } from "#contract/mils.ts";

import type { BadRows, DatasetReply } from "../api/replies.ts";
import { EXIT, type ExitCode } from "../exit-codes.ts";
import { durationText, tableText, timeText } from "../output.ts";

const usd = (amount: number): string => `$${usdText(mils(amount))}`;

export function datasetText(dataset: DatasetReply): string {
  const { frames, cost, progress } = dataset;
  return [
    `Dataset   ${dataset.id}${dataset.name === null ? "" : ` · ${dataset.name}`}`,
    `Model     ${dataset.model}`,
    `State     ${stateText(dataset)}`,
    `Created   ${timeText(dataset.created)} UTC${dataset.finished === null ? "" : `, finished ${timeText(dataset.finished)} UTC`}`,
    `Rows      ${rowsText(dataset)}`,
    `Frames    ${frames.delivered} delivered of ${frames.expected} expected${unmeasuredText(dataset)}`,
    `Estimate  ${usd(cost.estimated_mils)} at ${cost.price_mils_per_frame} mils a frame${cost.budget_mils === null ? "" : `, budget ${usd(cost.budget_mils)}`}`,
    `Spent     ${usd(cost.spent_mils)}, held ${usd(cost.held_mils)}, refunded ${usd(cost.refunded_mils)}`,
    `Progress  ${progress.done} of ${progress.of}${paceText(dataset)}`,
  ].join("\n");
}

/** Of rows that ended before anybody looked at their actions nothing more is expected. */
function unmeasuredText({ frames, rows }: DatasetReply): string {
  const count = Math.min(frames.rows_unmeasured, rows.pending);
  return count === 0 ? "" : `, ${count} ${count === 1 ? "row" : "rows"} not measured yet and taken for 49 each`;
}

/** "paused (insufficient_credits): what it waits for". */
export function stateText({ state, pause_reason, message }: DatasetReply): string {
  return `${state}${pause_reason === null ? "" : ` (${pause_reason})`}${message === null ? "" : `: ${message}`}`;
}

export function rowsText({ rows }: DatasetReply): string {
  const { total, ...states } = rows;
  const named = Object.entries(states).filter(([, count]) => count > 0);
  return `${total}${named.length === 0 ? "" : `: ${named.map(([state, count]) => `${count} ${state}`).join(", ")}`}`;
}

export function moneyText({ cost }: DatasetReply): string {
  return `spent ${usd(cost.spent_mils)} · held ${usd(cost.held_mils)} · refunded ${usd(cost.refunded_mils)} · estimate ${usd(cost.estimated_mils)}${
    cost.budget_mils === null ? "" : ` · budget ${usd(cost.budget_mils)}`
  }`;
}

export function paceText({ progress }: DatasetReply): string {
  const { rows_per_min, eta_s } = progress;
  const pace = rows_per_min === null ? "" : ` · ${rows_per_min.toFixed(rows_per_min < 10 ? 1 : 0)} rows/min`;
  return `${pace}${eta_s === null ? "" : ` · about ${durationText(eta_s)} left`}`;
}

export function badRowsText(problems: BadRows): string {
  return tableText([
    ["LINE", "ROW", "CODE", "WHAT"],
    ...problems.map(({ line, n, id, code, message }) => [String(line ?? n ?? ""), id ?? "", code, message]),
  ]);
}

/** Nothing moves before somebody does something, or ever again. */
export function isAtRest({ state }: DatasetReply): boolean {
  return ["ready", "paused", "completed", "cancelled", "rejected"].includes(state);
}

/** What a command that waited for it ends with. */
export function exitCodeOf({ state, pause_reason, rows }: DatasetReply): ExitCode {
  if (state === "paused" && pause_reason === "insufficient_credits") return EXIT.insufficientCredits;
  return state === "completed" && rows.succeeded === rows.total ? EXIT.done : EXIT.someFailed;
}
