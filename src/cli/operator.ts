/** Who is at the keyboard: written beside everything that is done to a customer by hand. */
import { userInfo } from "node:os";

import type { Command } from "commander";

/** `--operator`, for people who share an account of the machine. */
export const withOperator = (command: Command): Command =>
  command.option("--operator <name>", "who does this; default: your user name on this machine");

export function operatorOf({ operator }: { readonly operator?: string }): string {
  if (operator !== undefined && operator.trim() !== "") return operator.trim();
  try {
    return userInfo().username;
  } catch {
    return "unknown"; // a user id without a name, as containers have
  }
}
