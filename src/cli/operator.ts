/** Who is at the keyboard: written beside everything that is done to a customer by hand. */
import { userInfo } from "node:os";

import type { Command } from "commander";

/** `--operator`, for people who share an account of the machine. */
export const withOperator = (command: Command): Command =>
  command.option("--operator <name>", "who does this; default: your user name on this machine");

/** `--by`, where what is recorded is a word or a decision about a pool. */
export const withBy = (command: Command): Command =>
  command.option("--by <name>", "who says so; default: your user name on this machine");

export function operatorOf({ operator, by }: { readonly operator?: string; readonly by?: string }): string {
  const given = (operator ?? by ?? "").trim();
  if (given !== "") return given;
  try {
    return userInfo().username;
  } catch {
    return "unknown"; // a user id without a name, as containers have
  }
}
