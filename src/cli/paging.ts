/** Lists that come in pages. */
import { type Command, InvalidArgumentError } from "commander";

import type { Page } from "./api/replies.ts";
import { parseCount } from "./customer-options.ts";
import { type Output, tableText } from "./output.ts";

const PAGE_MAX = 200;
const LISTED_DEFAULT = 20;

export interface PagingOptions {
  readonly limit: number;
  readonly all?: true;
}

export function withPaging(command: Command, listedByDefault = LISTED_DEFAULT): Command {
  return command.option("--limit <n>", "how many", parseCount, listedByDefault).option("--all", "every one");
}

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
    readonly wanted: PagingOptions;
    readonly heading: readonly string[];
    readonly cells: (item: T) => string[];
    readonly pageMax?: number;
  },
): Promise<void> {
  let isFirst = true;
  const most = list.wanted.all ? Infinity : list.wanted.limit;
  for await (const items of eachOf(list.page, most, list.pageMax)) {
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
