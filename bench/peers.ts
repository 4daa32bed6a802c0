/**
 * The claim: serving a world model with Dream Engine, money and mp4 on, is ahead of LitServe, Ray Serve and BentoML at
 * saturation and in P99, and reaches 85 % of a bare onnxruntime loop without any server. All on the same bundle, the
 * same pipeline, the same cores, the same requests, one load generator, in one run:
 *
 *   bare loop          bench/peers/bare.py: batches run to completion, nothing around them (the ceiling)
 *   bare loop + mp4    the same with every video encoded
 *   LitServe, Ray Serve, BentoML
 *                      their dynamic batching and their HTTP path (bench/peers/serve_*.py say what is recommended where),
 *                      batch size and waiting time tuned here, before
 *   dream-engine       `dream-engine serve` as it ships; a bundle that ships TeaCache dreams another video, within its gate
 *   dream-engine, exact
 *                      the same, where it differs, with only what the peers' pipeline has, too: the same video
 *
 * Each is started for its turn, warmed, asked without pause (saturation), then offered 50, 80 and 120 % of what the
 * fastest of them managed while being tuned, as Poisson arrivals; turns rotate from round to round.
 *
 * Environment: BUNDLE (folder, default models/pusht-small), BENCH=short (a smoke run: does all of it run?), ROUNDS,
 * WINDOW_S (seconds of a measurement), ARRIVALS_MIN (of an offered load, where the window is short for so many), BATCHES and WAITS_MS (what the peers are tuned over), LENGTHS (actions of a
 * rollout, a mix), STEPS, GUIDANCE, SYSTEM_CORES, LOAD_CORES, RESULTS (folder). Nothing else may run on the machine:
 * the load average before is in the report. Needs Linux with taskset, python3 with venv, and some 700 MB for the peers' packages.
 *
 * Writes peers-<bundle>.json, .md and .svg to bench/results; ends with 1 when the claim is missed. `npm run bench:peers`
 */
import { execFile } from "node:child_process";
import { loadavg } from "node:os";
import { promisify } from "node:util";

import { describeMachine } from "./machine.ts";
import { bareRate } from "./peers/bare.ts";
import {
  type Measured,
  measureTurn,
  type Pace,
  type PeerTuning,
  progress,
  saturationOf,
  tune,
} from "./peers/measure.ts";
import { writeReport } from "./peers/report.ts";
import { framesOf } from "./peers/requests.ts";
import { expectVideo } from "./peers/same-video.ts";
import { during, ourSystems, readSetting, type System } from "./peers/setting.ts";
import { INTRA_OP_THREADS, PEERS, type Setting, startPeer } from "./peers/systems.ts";
import { numberOf, numbersOf } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const ROUNDS = numberOf("ROUNDS", SHORT ? 1 : 3);
const WINDOW_S = numberOf("WINDOW_S", SHORT ? 6 : 45);
const ARRIVALS_MIN = numberOf("ARRIVALS_MIN", SHORT ? 1 : 20);
/** Shares of the fastest system's saturation. */
const LOADS = [0.5, 0.8, 1.2] as const;
/** Batch sizes that every peer and the bare loop may choose from, up to the bundle's own limit. */
const BATCHES = numbersOf("BATCHES", SHORT ? [4] : [1, 2, 4, 8, 16]);
/** How long a batch may wait for more. From none to what a rollout hardly notices; the first one for choosing a batch size. */
const WAITS_MS = numbersOf("WAITS_MS", SHORT ? [10] : [10, 0, 100]);

/** Of the last minute. What else runs on the machine is measured along with the systems. */
const [LOAD_AVERAGE_BEFORE = 0] = loadavg();

async function main(): Promise<void> {
  const setting = await readSetting();
  const { cores, workload } = setting;
  const { max_batch_samples: samplesMax } = workload.manifest.engine;
  const batches = BATCHES.filter((batch) => batch <= samplesMax);
  const callers = (SHORT ? 1 : 2) * samplesMax * cores.count;
  const pace: Pace = {
    windowS: WINDOW_S,
    callers,
    answersMin: 2 * callers,
    arrivalsMin: ARRIVALS_MIN,
    processes: cores.count,
  };

  const bare = [
    { name: "bare loop", mp4: false, batch: await bestBatch(setting, batches, false) },
    { name: "bare loop + mp4", mp4: true, batch: await bestBatch(setting, batches, true) },
  ];
  const aloneS = cores.count / (await bareRate(setting, 1, true, WINDOW_S / 3));
  const tunings = await tunePeers(setting, batches, pace);
  const peers = PEERS.flatMap((peer, i): System[] => {
    const tuning = tunings[i]?.tuning;
    return tuning ? [{ name: peer.name, exact: true, start: () => startPeer(peer, tuning, setting) }] : [];
  });
  const ours = ourSystems(setting);
  const oursPerS = await checkAll(setting, peers, ours, pace);
  const fastestPerS = Math.max(...tunings.map((tuning) => tuning.saturation_per_s), ...oursPerS);
  const offered = LOADS.map((share) => ({ share, per_s: share * fastestPerS }));

  const measured = new Map<string, Measured>();
  const systems = [...peers, ...ours];
  for (let round = 0; round < ROUNDS; round++) {
    for (const { name, mp4, batch } of bare) {
      const perS = await bareRate(setting, batch, mp4, WINDOW_S);
      progress(`${name}: ${perS.toFixed(3)}/s`);
      addTo(measured, name, { saturations_per_s: [perS], loads: [] });
    }
    const first = round % systems.length;
    for (const { name, start } of [...systems.slice(first), ...systems.slice(0, first)]) {
      const offeredPerS = offered.map(({ per_s }) => per_s);
      addTo(measured, name, await during(start, (running) => measureTurn(name, running, pace, offeredPerS, round)));
    }
  }

  const [bareBatch, mp4Batch] = bare.map(({ batch }) => batch);
  const { made, missed } = await writeReport({
    folder: process.env["RESULTS"] ?? "bench/results",
    machine: describeMachine(),
    versions: await versionsOf(setting.python),
    workload: describeWorkload(setting, pace),
    ceilings: { bare_batch: bareBatch ?? 1, mp4_batch: mp4Batch ?? 1, alone_s: aloneS },
    tunings,
    offered,
    measured,
  });
  console.log(made);
  if (missed && !SHORT) process.exitCode = 1;
}

async function bestBatch(setting: Setting, batches: readonly number[], mp4: boolean): Promise<number> {
  let best = { batch: 1, perS: 0 };
  for (const batch of batches) {
    const perS = await bareRate(setting, batch, mp4, WINDOW_S / 3);
    progress(`bare loop${mp4 ? " + mp4" : ""}, batches of ${batch}: ${perS.toFixed(3)}/s`);
    if (perS > best.perS) best = { batch, perS };
  }
  return best.batch;
}

/** In the order of PEERS. */
async function tunePeers(setting: Setting, batches: readonly number[], pace: Pace): Promise<PeerTuning[]> {
  const tuned: PeerTuning[] = [];
  for (const peer of PEERS) {
    const waitsMs = peer.waits ? WAITS_MS : [null];
    tuned.push(await tune(peer.name, batches, waitsMs, pace, (tuning) => startPeer(peer, tuning, setting)));
  }
  return tuned;
}

/** That all dream the same video; and our own saturation, which the peers' is known of by now. */
async function checkAll(setting: Setting, peers: readonly System[], ours: readonly System[], pace: Pace) {
  const { ffmpegPath, workload } = setting;
  const oursPerS: number[] = [];
  let reference: Buffer | null = null;
  for (const system of [...peers, ...ours]) {
    await during(system.start, async (running) => {
      const video = await running.dream(0);
      const wanted = system.exact ? reference : null;
      await expectVideo(ffmpegPath, video, wanted, framesOf(workload, 0), workload.manifest.shapes);
      reference ??= video;
      if (ours.includes(system)) oursPerS.push(await saturationOf(running, pace));
    }).catch((error: unknown) => {
      throw new Error(`${system.name} does not dream what it should`, { cause: error });
    });
  }
  return oursPerS;
}

/** Another round of a system. */
function addTo(measured: Map<string, Measured>, name: string, { saturations_per_s, loads }: Measured): void {
  const before = measured.get(name) ?? { saturations_per_s: [], loads: [] };
  measured.set(name, {
    saturations_per_s: [...before.saturations_per_s, ...saturations_per_s],
    loads: loads.map((load, i) => [...(before.loads[i] ?? []), ...load]),
  });
}

function describeWorkload({ workload, cores }: Setting, { callers }: Pace) {
  return {
    model: workload.manifest.slug,
    actions: workload.lengths,
    num_steps: workload.numSteps,
    guidance: workload.guidance,
    system_cores: cores.system,
    load_cores: cores.load,
    intra_op_threads: INTRA_OP_THREADS,
    callers_at_saturation: callers,
    rounds: ROUNDS,
    window_s: WINDOW_S,
    load_average_before: LOAD_AVERAGE_BEFORE.toFixed(2),
  };
}

async function versionsOf(python: string): Promise<Readonly<Record<string, string>>> {
  const packages = ["litserve", "ray", "bentoml", "onnxruntime", "numpy", "uvicorn", "fastapi"];
  const program =
    "import json, platform, sys; from importlib.metadata import version; " +
    "print(json.dumps({'python': platform.python_version(), **{p: version(p) for p in sys.argv[1:]}}))";
  const { stdout } = await promisify(execFile)(python, ["-c", program, ...packages]);
  return JSON.parse(stdout) as Record<string, string>;
}

// The peers have process groups of their own, which a Ctrl-C does not reach: `exit` ends them.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
await main();
