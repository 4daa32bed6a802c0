/** How a customer's command ends (docs/cli.md). The operator's commands know 0 and 1 alone. */
export const EXIT = {
  done: 0,
  error: 1,
  usage: 2,
  /** Some rollouts or rows did not succeed, or a dataset waits for a person. */
  someFailed: 3,
  insufficientCredits: 4,
  /** 128 + SIGINT, as shells count it. */
  interrupted: 130,
} as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];
