/**
 * The claim: a system with HTTP, money, a queue and mp4 reaches 85 % of what a bare onnxruntime loop does on the same core.
 * `bench:peers` has both among others, an hour apart on a machine that is not the same all the time; here they take turns:
 *
 *   bare loop             bench/peers/bare.py: one rollout after the other, nothing around them (the baseline)
 *   bare loop + mp4       the same with every video encoded
 *   dream-engine, exact   `dream-engine serve` without TeaCache, so that it computes what the loop computes
 *
 * A ratio is of one turn's two figures; judged is the median of the ratios. Below: where the system's processor time went.
 *
 * Environment: BUNDLE, LENGTHS, STEPS, GUIDANCE, SYSTEM_CORES, LOAD_CORES as `bench:peers` takes them; TURNS, WINDOW_S, BATCH
 * (of the loop), BENCH=short, RESULTS (folder). Writes bare-<bundle>.md and .json; ends with 1 when the claim is missed.
 * `npm run bench:bare`
 */
import { coresCpu, spentBetween } from "./cpu.ts";
import { median } from "./machine.ts";
import { bareRate } from "./peers/bare.ts";
import { closedLoop } from "./peers/load.ts";
import { progress, warmed } from "./peers/measure.ts";
import { during, ourSystems, readSetting } from "./peers/setting.ts";
import { numberOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const TURNS = numberOf("TURNS", SHORT ? 1 : 5);
const WINDOW_S = numberOf("WINDOW_S", SHORT ? 5 : 60);
/** A CPU's core does no more rollouts a second in larger ones (bench:peers tries them). */
const BATCH = numberOf("BATCH", 1);
/** Enough that one is always in the engine while others are fetched, encoded and answered. */
const CALLERS = 2 * Math.max(2, BATCH);
const SHARE_MIN = 0.85;

interface Turn {
  readonly bare_per_s: number;
  readonly mp4_per_s: number;
  readonly ours_per_s: number;
}

async function main(): Promise<void> {
  const setting = await readSetting();
  const { cores, workload } = setting;
  const exact = ourSystems(setting).findLast((system) => system.exact);
  if (!exact) throw new Error("no system of ours computes every step");
  const turns: Turn[] = [];
  const spent = new Map<string, number>();
  for (let turn = 0; turn < TURNS; turn++) {
    const bare_per_s = await bareRate(setting, BATCH, false, WINDOW_S);
    const ours_per_s = await during(exact.start, async (running) => {
      const send = await warmed(running, cores.count);
      const before = await coresCpu(cores.system);
      const perS = await closedLoop(send, CALLERS * cores.count, WINDOW_S, 3 * CALLERS * cores.count);
      for (const [name, ms] of spentBetween(before, await coresCpu(cores.system))) {
        spent.set(name, (spent.get(name) ?? 0) + ms);
      }
      return perS;
    });
    const mp4_per_s = await bareRate(setting, BATCH, true, WINDOW_S);
    turns.push({ bare_per_s, mp4_per_s, ours_per_s });
    progress(
      `bare ${bare_per_s.toFixed(3)}/s, with mp4 ${mp4_per_s.toFixed(3)}/s, ${exact.name} ${ours_per_s.toFixed(3)}/s`,
    );
  }
  const share = median(turns.map(({ bare_per_s, ours_per_s }) => ours_per_s / bare_per_s));
  const besideMp4 = median(turns.map(({ mp4_per_s, ours_per_s }) => ours_per_s / mp4_per_s));
  const holds = share >= SHARE_MIN;
  const all = [...spent.values()].reduce((sum, ms) => sum + ms, 0);
  await writeReport({
    name: "bare",
    files: `bare-${workload.manifest.slug}`,
    title: `${workload.manifest.slug}: the whole system beside a bare onnxruntime loop`,
    how:
      `${workload.lengths.join(", ")} actions, ${workload.numSteps} steps, guidance ${workload.guidance}; cores ${cores.system} for what is ` +
      `measured, ${CALLERS * cores.count} callers without pause from ${cores.load}.`,
    lines: [
      `| turn | bare loop, rollouts/s | with mp4 | ${exact.name} | ÷ bare loop | ÷ with mp4 |`,
      "|---|---|---|---|---|---|",
      ...turns.map(
        ({ bare_per_s: bare, mp4_per_s: mp4, ours_per_s: ours }, n) =>
          `| ${n + 1} | ${bare.toFixed(3)} | ${mp4.toFixed(3)} | ${ours.toFixed(3)} | ${(ours / bare).toFixed(2)} | ${(ours / mp4).toFixed(2)} |`,
      ),
      `| median | | | | **${share.toFixed(2)}** | ${besideMp4.toFixed(2)} |`,
      "",
      `${holds ? "Holds" : "**Missed**"}: at least ${SHARE_MIN} of the bare loop.`,
      "",
      `## Where the processor time of ${exact.name} went`,
      "",
      "| | share |",
      "|---|---|",
      ...[...spent]
        .toSorted(([, a], [, b]) => b - a)
        .map(([name, ms]) => `| ${name} | ${((100 * ms) / all).toFixed(1)} % |`),
    ],
    figures: { turns, share, beside_mp4: besideMp4, processor_ms: Object.fromEntries(spent), holds },
  });
  if (!holds && !SHORT) process.exitCode = 1;
}

await main();
