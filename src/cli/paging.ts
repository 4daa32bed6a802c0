/** Lists that come in pages. */
import { InvalidArgumentError } from "commander";

import type { Page } from "./api/replies.ts";
import { type Output, tableText } from "./output.ts";

const PAGE_MAX = 200;

export type ReadPage<T> = (after: string | number | undefined, limit: number) => Promise<Page<T>>;

/** Every item, a page at a time. */
export async function* eachOf<T>(page: ReadPage<T>, most = Infinity, pageMax = PAGE_MAX): AsyncGenerator<T[]> {
  let after: string | number | undefined;
  for (let left = most; left > 0;) {
    const { data, has_more, next } = await page(after, Math.min(left, pageMax));
    if (data.length > 0) yield data;
    left -= data.length;
    // A page may be empty and not be the last one: a filter found nothing in it.
    if (!has_more || next === undefined || next === null) return;
    after = next;
  }
}

/** JSON lines, or one table a page: nothing is held back until the last page has come. */
export async function listAll<T>(
  out: Output,
  list: {
    readonly page: ReadPage<T>;
    readonly most: number;
    readonly heading: readonly string[];
    readonly cells: (item: T) => string[];
    readonly pageMax?: number;
  },
): Promise<void> {
  let isFirst = true;
  for await (const items of eachOf(list.page, list.most, list.pageMax)) {
    for (const item of items) out.line(item);
    if (out.json) continue;
    out.say(tableText([...(isFirst ? [list.heading] : []), ...items.map(list.cells)]));
    isFirst = false;
  }
  if (isFirst && !out.json) out.say(tableText([list.heading]));
}

/** Epoch seconds. */
export function parseTime(text: string): number {
  const ms = Date.parse(/^\d{4}-\d\d-\d\d$/.test(text) ? `${text}T00:00Z` : text);
  if (Number.isNaN(ms)) throw new InvalidArgumentError(`expected a time such as 2026-11-22T18:00Z, got ${text}`);
  return Math.floor(ms / 1_000);
}
