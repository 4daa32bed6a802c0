/** Has the embedded server of a data folder open until it is killed. */
import { openEmbeddedPostgres } from "#cli/embedded-postgres.ts";
import { createLog } from "#platform/log.ts";

const [dataDir = ""] = process.argv.slice(2);
await openEmbeddedPostgres({ dataDir, log: createLog("holder", "silent") });
process.on("message", () => undefined); // keeps the channel, and with it this process, open
process.send?.("open");
