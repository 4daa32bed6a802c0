/** `dream-engine economics`: what a frame costs and leaves, by pool, in a month. */
import { Argument, type Command } from "commander";

import { economicsJson } from "#economics/json.ts";
import { readMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";
import { noteReprice } from "#economics/noted.ts";

import { withDatabase } from "../context.ts";
import { economicsText } from "../economics-report.ts";
import { operatorOf, withBy } from "../operator.ts";
import { visible } from "../output.ts";
import { requirePool } from "../pools-report.ts";
import { printJson } from "../print.ts";

export function addEconomics(program: Command): void {
  const economics = program
    .command("economics")
    .description("what a frame costs and leaves, by pool, in a month")
    .option("--month <month>", "such as 2026-11, in UTC; default: the present one")
    .option("--json", "print JSON on stdout")
    .action(show);
  withBy(
    economics
      .command("note")
      .description("record a reason to look at the price again that no figure shows; once a month each")
      .argument("<model>", "slug of the pool")
      .addArgument(new Argument("<reason>").choices(["competition", "gpu-class"]))
      .requiredOption("--note <text>", "who offers what, where it is written"),
  ).action(note);
}

async function show({ month, json }: { readonly month?: string; readonly json?: true }): Promise<void> {
  const now = new Date();
  const report = await withDatabase(({ db }, config) =>
    readMonth(db, { month: month ?? monthOf(now), gpuUsdPerHour: config.GPU_USD_PER_HOUR }, now),
  );
  if (json) printJson(economicsJson(report));
  else console.log(visible(economicsText(report, now)));
}

async function note(
  model: string,
  reason: "competition" | "gpu-class",
  options: { readonly note: string; readonly by?: string },
): Promise<void> {
  const by = operatorOf(options);
  const first = await withDatabase(async ({ db }) => {
    await requirePool(db, model);
    const trigger = reason === "gpu-class" ? ("gpu_class" as const) : reason;
    return await noteReprice(db, { model, by, trigger, note: options.note, at: new Date() });
  });
  console.log(first ? `Recorded for ${model}.` : `${model} has that reason on record for this month already.`);
}
