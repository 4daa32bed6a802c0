/** Progress of a start, on stderr: whole lines, because log lines come in between. */

export interface Steps {
  /** Something that takes a while begins. */
  begin(text: string): void;
  /** It is done; says how long it took since the last line. */
  done(text: string): void;
}

export function createSteps(write: (text: string) => void = (text) => process.stderr.write(text)): Steps {
  const isTerminal = process.stderr.isTTY;
  const dim = (text: string): string => (isTerminal ? `\u001B[2m${text}\u001B[0m` : text);
  const green = (text: string): string => (isTerminal ? `\u001B[32m${text}\u001B[0m` : text);
  let since = Date.now();
  return {
    begin: (text) => write(dim(`  … ${text}\n`)),
    done(text) {
      const seconds = ((Date.now() - since) / 1_000).toFixed(1);
      since = Date.now();
      write(`  ${green("✓")} ${text} ${dim(`(${seconds} s)`)}\n`);
    },
  };
}
