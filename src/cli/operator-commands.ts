/** Every command but a customer's: they load the server, or reach its database. */
import { addBilling } from "./commands/billing.ts";
import { addCredits } from "./commands/credits.ts";
import { addCustomers } from "./commands/customers.ts";
import { addDatabase } from "./commands/database.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addEconomics } from "./commands/economics.ts";
import { addGateway } from "./commands/gateway.ts";
import { addKeys } from "./commands/keys.ts";
import { addLedger } from "./commands/ledger.ts";
import { addNotifier } from "./commands/notifier.ts";
import { addPools } from "./commands/pools.ts";
import { addPrices } from "./commands/prices.ts";
import { addRunner } from "./commands/runner.ts";
import { addScheduler } from "./commands/scheduler.ts";
import { addServe } from "./commands/serve.ts";
import { addSettlement } from "./commands/settlement.ts";
import { addSimulate } from "./commands/simulate.ts";
import { addWorker } from "./commands/worker.ts";

/** In the order of the help text. */
export const OPERATOR_COMMANDS = [
  addServe,
  addGateway,
  addWorker,
  addSettlement,
  addScheduler,
  addRunner,
  addNotifier,
  addKeys,
  addCredits,
  addCustomers,
  addBilling,
  addPrices,
  addLedger,
  addEconomics,
  addPools,
  addSimulate,
  addDatabase,
  addDoctor,
];
