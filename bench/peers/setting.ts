/** What is measured on what, as the environment says; and our own systems among those that are compared. */
import { basename, resolve } from "node:path";

import { loadManifests } from "#platform/bundles.ts";
import { ensurePython } from "#test/support/python.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { onSystemCores, readCores } from "./affinity.ts";
import { progress } from "./measure.ts";
import { OURS, OURS_EXACT } from "./report.ts";
import { readWorkload } from "./requests.ts";
import { type Running, type Setting, startOurs } from "./systems.ts";

export interface System {
  readonly name: string;
  /** False where it may dream another video: within the gate, not the same. */
  readonly exact: boolean;
  readonly start: () => Promise<Running>;
}

export async function readSetting(): Promise<Setting> {
  const bundleDir = resolve(process.env["BUNDLE"] ?? "models/pusht-small");
  const manifests = await loadManifests(resolve(bundleDir, ".."));
  const manifest = manifests.find(({ slug }) => slug === basename(bundleDir));
  if (!manifest) throw new Error(`BUNDLE: expected the folder of a model bundle, got ${bundleDir}`);
  const cores = readCores(process.env);
  await onSystemCores(cores, () => Promise.resolve()); // ends on the load generator's own cores
  progress(`systems on the cores ${cores.system}, load from ${cores.load}; the peers' packages are installed first`);
  return {
    python: await ensurePython(resolve("bench/peers/requirements.txt")),
    ffmpegPath: await findFfmpeg(process.env["FFMPEG_PATH"]),
    bundleDir,
    cores,
    workload: await readWorkload(bundleDir, manifest, process.env),
  };
}

/** All but TeaCache change nothing in the result: the peers' pipeline has what of them a pipeline can have. */
export function ourSystems(setting: Setting): System[] {
  const { teacache, ...switches } = setting.workload.manifest.engine.optimisations;
  const shipped: System = { name: OURS, exact: !teacache, start: () => startOurs(null, setting) };
  if (!teacache) return [shipped];
  const exact = Object.entries(switches).flatMap(([name, on]) => (on ? [name] : []));
  const start = () => startOurs(exact.length === 0 ? "none" : exact.join(","), setting);
  return [shipped, { name: OURS_EXACT, exact: true, start }];
}

/** Of a system that is stopped afterwards, whatever happens. */
export async function during<T>(start: () => Promise<Running>, work: (running: Running) => Promise<T>): Promise<T> {
  const running = await start();
  try {
    return await work(running);
  } finally {
    await running.stop();
  }
}
