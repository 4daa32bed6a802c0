/** `dream-engine <command>`: the one entry of every process. Each command's file is a composition root. */
import { Command, Help, type Option } from "commander";

import { addBilling } from "./commands/billing.ts";
import { addCredits } from "./commands/credits.ts";
import { addCustomers } from "./commands/customers.ts";
import { addDatabase } from "./commands/database.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addGateway } from "./commands/gateway.ts";
import { addKeys } from "./commands/keys.ts";
import { addLedger } from "./commands/ledger.ts";
import { addPredict } from "./commands/predict.ts";
import { addPrices } from "./commands/prices.ts";
import { addScheduler } from "./commands/scheduler.ts";
import { addServe } from "./commands/serve.ts";
import { addSettlement } from "./commands/settlement.ts";
import { addWorker } from "./commands/worker.ts";
import { endWith } from "./end.ts";

const program = new Command("dream-engine")
  .description("Action-conditioned video world models: serving, keys, credits")
  .showHelpAfterError("(--help says what is expected)")
  .configureHelp({ optionDescription: describeOption });

for (const add of [
  addServe,
  addGateway,
  addWorker,
  addSettlement,
  addScheduler,
  addKeys,
  addCredits,
  addCustomers,
  addBilling,
  addPrices,
  addLedger,
  addPredict,
  addDatabase,
  addDoctor,
]) {
  add(program);
}

/** Commander's own text does not say which options a command cannot do without. */
function describeOption(option: Option): string {
  const text = new Help().optionDescription(option);
  return option.mandatory ? `${text} (required)` : text;
}

await endWith(program.parseAsync());
