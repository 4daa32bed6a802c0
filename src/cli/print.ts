/** Printing for people and for programs. */
import { tableText } from "./output.ts";

/** One JSON document on stdout; bigints as numbers, which every amount of ours fits. */
export function printJson(value: unknown): void {
  console.log(JSON.stringify(value, (_key, item: unknown) => (typeof item === "bigint" ? Number(item) : item), 2));
}

/** Columns as wide as their widest cell. */
export function printTable(heading: readonly string[], rows: readonly (readonly string[])[]): void {
  console.log(tableText([heading, ...rows]));
}
