/** A dataset as it moves: redrawn in place on a terminal, a line for each change elsewhere. */
import type { DatasetReply } from "../api/replies.ts";
import { tableText, visible } from "../output.ts";
import { moneyText, paceText, rowsText, stateText } from "./show.ts";

export interface LiveTable {
  readonly show: (dataset: DatasetReply) => void;
  /** Takes the drawing away, so that the last words stand where it was. */
  readonly end: () => void;
}

const BAR_CHARS = 40;
const COLUMNS_DEFAULT = 80;
const UP_AND_CLEAR = (lines: number): string => `\u001B[${lines}A\u001B[0J`;

export function createLiveTable(terminal: NodeJS.WriteStream): LiveTable {
  let drawn = 0;
  const erase = (): string => (drawn === 0 ? "" : UP_AND_CLEAR(drawn));
  return {
    show(dataset) {
      const width = terminal.columns ?? COLUMNS_DEFAULT;
      // A line that wraps would be counted as one and not be erased whole.
      const lines = tableLines(dataset).map((line) =>
        visible(line)
          .replaceAll("\n", " ")
          .slice(0, width - 1),
      );
      terminal.write(`${erase()}${lines.join("\n")}\n`);
      drawn = lines.length;
    },
    end() {
      terminal.write(erase());
      drawn = 0;
    },
  };
}

/** `say` gets a line whenever something changed, and the dataset's message when that did. */
export function createPlainLines(say: (line: string) => void): LiveTable {
  let last = "";
  let said: string | null = null;
  return {
    show(dataset) {
      const { progress, message } = dataset;
      if (message !== null && message !== said) say(message);
      said = message;
      const line = `${stateText({ ...dataset, message: null })} · ${progress.done} of ${progress.of} rows (${rowsText(dataset)}) · ${moneyText(dataset)}`;
      if (line === last) return;
      last = line;
      say(`${line}${paceText(dataset)}`);
    },
    end: () => undefined,
  };
}

function tableLines(dataset: DatasetReply): string[] {
  const { id, name, rows, frames, progress } = dataset;
  const fraction = progress.of === 0 ? 0 : progress.done / progress.of;
  const full = Math.floor(fraction * BAR_CHARS);
  const bar = "█".repeat(full) + "░".repeat(BAR_CHARS - full);
  const { total: _total, ...states } = rows;
  return [
    `  ${name === null ? id : `${name} · ${id}`} · ${stateText(dataset)}`,
    `  ${bar} ${(fraction * 100).toFixed(1)} %  ${progress.done} of ${progress.of} rows${paceText(dataset)}`,
    "",
    ...tableText([
      Object.keys(states).map((state) => state.padStart(9)),
      Object.values(states).map((count) => String(count).padStart(9)),
    ])
      .split("\n")
      .map((line) => `  ${line}`),
    "",
    `  frames   ${frames.delivered} delivered of ${frames.expected} expected`,
    `  money    ${moneyText(dataset)}`,
  ];
}
