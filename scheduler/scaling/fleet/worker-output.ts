/** Passes what a worker process prints on to our log, under the worker's name. */
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { stripVTControlCharacters } from "node:util";

import type { Log } from "#platform/log.ts";

const LINE_CHARS_MAX = 4_000;
/** pino's numbers for levels. */
const LEVELS = { 10: "trace", 20: "debug", 30: "info", 40: "warn", 50: "error", 60: "fatal" } as const;

/** Log lines of ours keep their level and fields; anything else (a native library's last words) is a warning. */
export function forwardOutput(stream: Readable, log: Log): void {
  createInterface({ input: stream, crlfDelay: Infinity }).on("line", (line) => {
    const entry = parseEntry(line);
    if (entry) {
      log[entry.level](entry.fields, entry.message);
      return;
    }
    const text = stripVTControlCharacters(line).trim(); // native libraries print in colour
    if (text !== "") log.warn({ output: text.slice(0, LINE_CHARS_MAX) }, "worker output");
  });
}

function parseEntry(
  line: string,
): { level: (typeof LEVELS)[keyof typeof LEVELS]; message: string; fields: object } | null {
  if (!line.startsWith("{") || line.length > LINE_CHARS_MAX) return null;
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return null; // looked like a log line and is none
  }
  if (typeof value !== "object" || value === null || !("level" in value) || !("msg" in value)) return null;
  const { level, msg, time: _time, hostname: _hostname, name: _name, ...fields } = value as Record<string, unknown>;
  const known = Object.entries(LEVELS).find(([number]) => Number(number) === level);
  return known ? { level: known[1], message: String(msg), fields } : null;
}
