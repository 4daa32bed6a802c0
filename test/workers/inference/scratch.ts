import sharp from "sharp";
import { readFileSync } from "node:fs";
import { loadManifests } from "#platform/bundles.ts";
import { createLog } from "#platform/log.ts";
import { startEngine } from "#workers/inference/engine/engine.ts";
const [m] = await loadManifests("models");
if (!m) throw new Error("none");
let t0 = performance.now();
const engine = await startEngine({ bundleDir: "models/pusht-small", manifest: m, providers: ["cpu"], runTimeoutMs: 5000, log: createLog("x", "info") });
console.log("load ms", performance.now() - t0);
for (const name of ["default", "slow-arm-guided", "six-steps", "one-step"]) {
const dir = "test/golden/" + name;
const frame = await sharp(dir + "/start_frame.png").removeAlpha().raw().toBuffer();
const npy = readFileSync(dir + "/actions.npy");
const actions = new Float32Array(npy.buffer.slice(npy.byteOffset + 128, npy.byteOffset + npy.length));
const golden = await sharp(dir + "/frames.png").removeAlpha().raw().toBuffer();
const man = JSON.parse(readFileSync("test/golden/manifest.json", "utf8")).rollouts.find((r: any) => r.name === name);
for (const K of [1, 8]) {
const got: Uint8Array[][] = Array.from({length:K}, () => [new Uint8Array(frame)]);
t0 = performance.now();
const before = structuredClone(engine.stats);
const h = engine.submit({ id: name+K, frame: new Uint8Array(frame), actions: Array.from({length:K}, () => actions), seed: BigInt(man.seed), numSteps: man.num_steps, guidance: man.guidance, prompt: man.prompt, alone: false }, (c, f) => got[c]?.push(f));
console.log(name, K, await h.done, "wall", performance.now() - t0);
const all = Buffer.concat(got[K-1]!);
let worst = 0, mean = 0;
const px = 96 * 96 * 3;
for (let f = 0; f < 49; f++) { let s = 0; for (let i = 0; i < px; i++) s += Math.abs(all[f * px + i]! - golden[f * px + i]!); worst = Math.max(worst, s / px); mean += s / px / 49; }
console.log(actions.length, got[0]?.length, "worst frame mean abs", worst, "mean", mean);
}
}
console.log(JSON.stringify(engine.stats));
console.log(await engine.stop());
