/** `dream-engine serve`: the embedded system, until Ctrl-C. */
import type { Command } from "commander";

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("run everything here: gateway, scheduler, settlement, inference workers, and a database if need be")
    .action(async () => {
      // Loaded here, because short commands should not wait for the whole system's modules.
      const { serve } = await import("../serve.ts");
      await serve();
    });
}
