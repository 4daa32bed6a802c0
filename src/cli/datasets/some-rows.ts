/** Which rollouts of a dataset are shown where there is no room for all. */
import { DATASET_ROWS_PAGE_MAX } from "#contract/limits.ts";

import type { Page, RowReply } from "../api/replies.ts";
import { spread } from "../contact-sheet.ts";

/** Succeeded rows alone, in order, from the first one after row `after`. */
export type ReadSucceeded = (after: number, limit: number) => Promise<Page<RowReply>>;

const SHOWN = 8;

/**
 * Up to eight succeeded rows from all over the dataset, in order. Of a dataset that has more than a page of them each is
 * the first one at or after its place, so that a quarter of a million rows are not read for eight.
 */
export async function someRows(read: ReadSucceeded, total: number): Promise<RowReply[]> {
  const { data: first, has_more } = await read(0, DATASET_ROWS_PAGE_MAX);
  const ofFirst = spread(first.length, SHOWN).flatMap((index) => first[index] ?? []);
  if (!has_more) return ofFirst;
  const found = new Map<number, RowReply>();
  for (const place of spread(total, SHOWN)) {
    for (const row of (await read(place, 1)).data) found.set(row.n, row);
  }
  // Where they lie close together, several places have led to one.
  for (const row of ofFirst) if (found.size < SHOWN) found.set(row.n, row);
  return [...found.values()].toSorted((a, b) => a.n - b.n);
}
