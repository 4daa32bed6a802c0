/** Times as they stand on the wire: whole seconds since 1970, `laterMs` after `time`. Null stays null. */
export function epochS(time: Date, laterMs?: number): number;
export function epochS(time: Date | null, laterMs?: number): number | null;
export function epochS(time: Date | null, laterMs = 0): number | null {
  return time === null ? null : Math.floor((time.getTime() + laterMs) / 1000);
}
