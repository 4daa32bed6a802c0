/** A manifest, line by line from wherever it comes: never more of it in memory than one batch of rows, or one line. */
import { ApiError } from "#contract/errors.ts";
import { DATASET_LINE_BYTES_MAX, DATASET_ROWS_MAX } from "#contract/limits.ts";

import { CONTAINER_BYTES, containerOf } from "./archive-entries.ts";
import { ROWS_AT_ONCE } from "./insert-rows.ts";
import { createLineSplitter, type Line } from "./line-splitter.ts";
import { type BadRow, type ManifestRules, type NamedRow, parseManifestLine } from "./manifest-row.ts";

/** Takes rows in their order; false where no more are wanted. */
export type TakeRows = (rows: readonly (NamedRow | BadRow)[]) => Promise<boolean>;

/** Text of lines that wait for their batch: inputs in it are large. */
const HELD_BYTES_MAX = 4 * 1024 * 1024;
/** Lines that say nothing are read for nothing. */
const LINES_MAX = 10 * DATASET_ROWS_MAX;

export async function ingestManifest(
  source: AsyncIterable<Buffer>,
  rules: ManifestRules,
  take: TakeRows,
): Promise<void> {
  const splitter = createLineSplitter(DATASET_LINE_BYTES_MAX);
  let rows: (NamedRow | BadRow)[] = [];
  let heldBytes = 0;
  let begun = false;

  async function takeLine(line: Line): Promise<boolean> {
    if (line.n > LINES_MAX) {
      throw new ApiError("dataset_rejected", `manifest: expected at most ${LINES_MAX} lines, empty ones included`);
    }
    rows.push(parseManifestLine(line, rules));
    heldBytes += line.bytes?.length ?? 0;
    return rows.length >= ROWS_AT_ONCE || heldBytes >= HELD_BYTES_MAX ? flush() : true;
  }

  async function flush(): Promise<boolean> {
    const batch = rows;
    rows = [];
    heldBytes = 0;
    return batch.length === 0 || take(batch);
  }

  for await (const chunk of source) {
    if (!begun) refuseContainer(chunk);
    begun = true;
    for (const line of splitter.push(chunk)) if (!(await takeLine(line))) return;
  }
  for (const line of splitter.end()) if (!(await takeLine(line))) return;
  await flush();
}

/** Somebody mixed up the two parts: one message instead of a thousand lines that are not JSON. */
function refuseContainer(head: Buffer): void {
  const container = containerOf(head.subarray(0, CONTAINER_BYTES));
  if (container === null) return;
  throw new ApiError(
    "dataset_rejected",
    `manifest: expected JSON lines, got a ${container}; send archives as "archive"`,
  );
}
