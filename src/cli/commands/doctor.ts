/** `dream-engine doctor`: what may keep the system from working on this machine, and what to do about it. */
import type { Command } from "commander";

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("check this machine, the configuration, the models, the database and the ledger")
    .action(async () => {
      const { runChecks } = await import("../checks.ts"); // see serve.ts
      const problems = await runChecks((line) => console.log(line));
      console.log(problems === 0 ? "\nAll well." : `\n${problems} ${problems === 1 ? "problem" : "problems"}.`);
      if (problems > 0) process.exitCode = 1;
    });
}
