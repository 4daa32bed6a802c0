/** Progress bars on stderr where somebody watches, and nothing elsewhere. */
import cliProgress from "cli-progress";

import { visible } from "./output.ts";

export interface Bar {
  update(value: number, text?: string): void;
  stop(): void;
}

const SILENT: Bar = { update: () => undefined, stop: () => undefined };

/** `format` as of cli-progress; `{text}` is what `update` says beside the number. */
export function createBar(format: string, total: number): Bar {
  if (!process.stderr.isTTY) return SILENT;
  const bar = new cliProgress.SingleBar(
    { format, barsize: 32, clearOnComplete: true, hideCursor: true, stream: process.stderr },
    cliProgress.Presets.shades_classic,
  );
  bar.start(total, 0, { text: "" });
  return {
    update: (value, text) => bar.update(value, text === undefined ? {} : { text: visible(text) }),
    stop: () => bar.stop(),
  };
}

/** One line each; made at its first update. */
export function createBars(format: string): { of(name: string, total: number): Bar; stop(): void } {
  if (!process.stderr.isTTY) return { of: () => SILENT, stop: () => undefined };
  const bars = new cliProgress.MultiBar(
    { format, barsize: 16, hideCursor: true, clearOnComplete: false, stream: process.stderr },
    cliProgress.Presets.shades_classic,
  );
  return {
    of(name, total) {
      const bar = bars.create(total, 0, { name, text: "" });
      return {
        update: (value, text) => bar.update(value, text === undefined ? {} : { text: visible(text) }),
        stop: () => bar.stop(),
      };
    },
    stop: () => bars.stop(),
  };
}
