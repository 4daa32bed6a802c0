/**
 * Entry of the engine thread: loads and warms the bundle, then loops until told to stop. An error, also one of a
 * graph, ends the thread; the main thread sees it as the thread's `error` event and decides.
 */
import { strict as assert } from "node:assert";
import { parentPort, workerData } from "node:worker_threads";

import { createCounters } from "./counters.ts";
import { checkBundle } from "./graphs.ts";
import { createLoop } from "./loop.ts";
import { type FromThread, PULSE, type ThreadData, type ToThread } from "./messages.ts";
import { deviceMemory } from "./device.ts";
import { openOnnxGraphs } from "./onnx.ts";
import { createOutbox } from "./outbox.ts";
import { isOnDevice } from "./providers.ts";
import { processMemory, warmUp } from "./warm-up.ts";

assert(parentPort, "this is the entry of a worker thread");
const port = parentPort;
// engine.ts starts this thread, with these.
const { bundleDir, manifest, providers, device, tuning, rowsWorthFixed, specs, pulse } = workerData as ThreadData;

const graphs = await openOnnxGraphs({ bundleDir, manifest, providers, device, tuning });
checkBundle(manifest, graphs);
const memory = isOnDevice(providers)
  ? await deviceMemory({ device, visible: process.env["CUDA_VISIBLE_DEVICES"] })
  : processMemory;
const warm = await warmUp({ manifest, graphs, memory, now: () => performance.now() });

const counters = createCounters();
const outbox = createOutbox((news, transfer) => {
  port.postMessage({ type: "news", news, stats: counters } satisfies FromThread, transfer);
});
const loop = await createLoop({
  manifest,
  graphs,
  rowLimits: { rowsMax: warm.samplesMax, rowsWorth: rowsWorthFixed ?? warm.rowsWorth, fillTo: warm.fillTo },
  specs,
  counters,
  emit: outbox.emit,
  onRun: () => Atomics.add(pulse, PULSE.runs, 1),
  onBusy(busy) {
    Atomics.store(pulse, PULSE.busy, busy ? 1 : 0);
    if (!busy) outbox.flush();
  },
  now: () => performance.now(),
});

port.on("message", (message: ToThread) => {
  switch (message.type) {
    case "submit":
      return loop.submit(message.request);
    case "cancel":
      return loop.cancel(message.id);
    case "taken":
      return loop.taken(message.id, message.candidate, message.frames);
    case "stop":
      return loop.stop();
  }
});
port.postMessage({ type: "ready", warmUp: warm, stats: counters } satisfies FromThread);

await loop.run();
await graphs.release();
port.close(); // nothing keeps the thread now: it ends by itself, outside any run
