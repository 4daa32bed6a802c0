/** `dream-engine <command>`: the one entry of every process. Each command's file is a composition root. */
import { Command, Help, type Option } from "commander";

import { addDatasets } from "./commands/datasets.ts";
import { addPredict } from "./commands/predict.ts";
import { addRollouts } from "./commands/rollouts.ts";
import { addWebhooks } from "./commands/webhooks.ts";
import { endsUsageErrors } from "./customer-options.ts";
import { endWith } from "./end.ts";

const program = new Command("dream-engine")
  .description("Action-conditioned video world models: serving, keys, credits")
  .showHelpAfterError("(--help says what is expected)")
  .configureHelp({ optionDescription: describeOption });

/** They speak HTTP alone and are called by scripts, often: they start in half the time without everything else. */
const CUSTOMER_COMMANDS = { predict: addPredict, rollouts: addRollouts, datasets: addDatasets, webhooks: addWebhooks };
if (!Object.hasOwn(CUSTOMER_COMMANDS, process.argv[2] ?? "")) {
  const { OPERATOR_COMMANDS } = await import("./operator-commands.ts");
  for (const add of OPERATOR_COMMANDS) add(program);
}
for (const add of Object.values(CUSTOMER_COMMANDS)) add(program);
endsUsageErrors(program); // last: the operator's commands would take it over

/** Commander's own text does not say which options a command cannot do without. */
function describeOption(option: Option): string {
  const text = new Help().optionDescription(option);
  return option.mandatory ? `${text} (required)` : text;
}

await endWith(program.parseAsync());
