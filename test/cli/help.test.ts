import { Command } from "commander";
import { expect, test } from "vitest";

import { addDatasets } from "#cli/commands/datasets.ts";
import { addPredict } from "#cli/commands/predict.ts";
import { addRollouts } from "#cli/commands/rollouts.ts";
import { addWebhooks } from "#cli/commands/webhooks.ts";
import { OPERATOR_COMMANDS } from "#cli/operator-commands.ts";

test("every command says what it is for, and its help can be printed", () => {
  const program = new Command();
  for (const add of [...OPERATOR_COMMANDS, addPredict, addRollouts, addDatasets, addWebhooks]) add(program);
  const commands = withThoseBelow(program).slice(1);
  expect(commands.length).toBeGreaterThan(20);
  for (const command of commands) {
    expect(command.helpInformation(), command.name()).toContain("Usage:");
    expect(command.description(), command.name()).not.toBe("");
  }
});

function withThoseBelow(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withThoseBelow)];
}
