/** Where a customer's command says what: with --json, stdout is for programs alone and people read stderr. */
import { wireJsonText } from "#contract/wire-json.ts";

export interface Output {
  readonly json: boolean;
  /** For people: stdout, or stderr beside JSON. */
  readonly say: (text: string) => void;
  /** The one document of the command; nothing without --json. */
  readonly document: (value: unknown) => void;
  /** One of many: JSON lines; nothing without --json. */
  readonly line: (value: unknown) => void;
}

export function createOutput(json: boolean): Output {
  return {
    json,
    say: (text) => (json ? process.stderr : process.stdout).write(`${visible(text)}\n`),
    document: (value) => json && process.stdout.write(`${wireJsonText(value, 2)}\n`),
    line: (value) => json && process.stdout.write(`${wireJsonText(value)}\n`),
  };
}

/**
 * Text that came from elsewhere, for a terminal: what would move its cursor, change its title or turn text around is shown
 * as a mark. A row's error repeats what some server answered.
 */
export const visible = (text: string): string =>
  text.replaceAll(/[^\P{Cc}\n]|[\u202A-\u202E\u2066-\u2069]/gu, "\uFFFD");

/** Columns as wide as their widest cell. */
export function tableText(texts: readonly (readonly string[])[]): string {
  const rows = texts.map((row) => row.map((cell) => visible(cell).replaceAll("\n", " ")));
  const columns = Math.max(0, ...rows.map(({ length }) => length));
  const widths = Array.from({ length: columns }, (_unused, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  );
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** 75 → "1 min 15 s". */
export function durationText(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3_600)} h ${Math.floor((whole % 3_600) / 60)} min`;
}

export function bytesText(bytes: number): string {
  if (bytes < 1_000_000) return `${(bytes / 1_000).toFixed(1)} kB`;
  return bytes < 1_000_000_000 ? `${(bytes / 1_000_000).toFixed(1)} MB` : `${(bytes / 1_000_000_000).toFixed(2)} GB`;
}

/** Epoch seconds in UTC, to the second. */
export function timeText(epochS: number): string {
  return new Date(epochS * 1_000).toISOString().slice(0, 19).replace("T", " ");
}
