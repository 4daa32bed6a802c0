/** A bundle's graphs on ONNX Runtime. `run()` blocks the thread it is called on: this belongs in the engine thread. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";

import * as ort from "onnxruntime-node";

import { GRAPH_NAMES, type GraphName, type Manifest } from "#contract/manifest.ts";

import { BundleMismatch, type Graphs, type GraphSignature, type TensorSpec } from "./graphs.ts";
import { defaultTuning, type SessionTuning } from "./session-tuning.ts";
import { float32, int64, type Tensor, uint8 } from "./tensor.ts";

export interface OnnxOptions {
  readonly bundleDir: string;
  readonly manifest: Manifest;
  /** Execution providers in order of preference: cpu, cuda, tensorrt. */
  readonly providers: readonly string[];
  /** Number of the device that cuda and tensorrt use. */
  readonly device?: number | undefined;
  /** What differs from the default. */
  readonly tuning?: Partial<SessionTuning> | undefined;
}

/** Loads every graph of the bundle. Throws BundleMismatch when a file is not the one that the manifest names. */
export async function openOnnxGraphs(options: OnnxOptions): Promise<Graphs> {
  const { bundleDir, manifest } = options;
  const sessions = new Map<GraphName, ort.InferenceSession>();
  for (const graph of GRAPH_NAMES) {
    const entry = manifest.graphs[graph];
    if (!entry) continue;
    const path = join(bundleDir, entry.file);
    const bytes = await readFile(path);
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    if (sha256 !== entry.sha256) {
      throw new BundleMismatch(`${path} has SHA-256 ${sha256}, the manifest says ${entry.sha256}`);
    }
    sessions.set(graph, await openSession(path, bytes, options));
  }

  const signatures: Partial<Record<GraphName, GraphSignature>> = {};
  for (const [graph, session] of sessions) {
    signatures[graph] = {
      inputs: session.inputMetadata.map(specOf),
      outputs: session.outputMetadata.map(specOf),
    };
  }

  return {
    signatures,
    async run(graph, inputs) {
      const session = sessions.get(graph);
      if (!session) throw new Error(`the bundle has no graph ${graph}`);
      const feeds: Record<string, ort.Tensor> = {};
      for (const [name, tensor] of Object.entries(inputs)) feeds[name] = toOrt(tensor);
      const outputs: Record<string, Tensor> = {};
      for (const [name, tensor] of Object.entries(await session.run(feeds))) {
        outputs[name] = fromOrt(graph, name, tensor);
      }
      return outputs;
    },
    async release() {
      for (const session of sessions.values()) await session.release();
      sessions.clear();
    },
  };
}

async function openSession(
  path: string,
  bytes: Buffer,
  { providers, device = 0, tuning }: OnnxOptions,
): Promise<ort.InferenceSession> {
  const { threads, spinning, optimisation, execution, arena, memoryPattern } = {
    ...defaultTuning(availableParallelism()),
    ...tuning,
  };
  try {
    return await ort.InferenceSession.create(bytes, {
      // The binding passes on no other option of a provider than the device's number.
      executionProviders: providers.map((name) => (name === "cpu" ? name : { name, deviceId: device })),
      executionMode: execution,
      intraOpNumThreads: threads,
      interOpNumThreads: execution === "parallel" ? threads : 1,
      graphOptimizationLevel: optimisation,
      enableCpuMemArena: arena,
      enableMemPattern: memoryPattern,
      extra: { session: { intra_op: { allow_spinning: spinning ? "1" : "0" } } },
      logSeverityLevel: 3, // errors: constant-folding warnings of an exporter are no news to an operator
    });
  } catch (error) {
    throw new BundleMismatch(`${path} cannot be loaded on ${providers.join(", ")}`, { cause: error });
  }
}

function specOf(metadata: ort.InferenceSession.ValueMetadata): TensorSpec {
  if (!metadata.isTensor) throw new BundleMismatch(`${metadata.name} is not a tensor`);
  return {
    name: metadata.name,
    type: metadata.type,
    dims: metadata.shape.map((dim) => (typeof dim === "number" ? dim : null)),
  };
}

function toOrt({ type, data, dims }: Tensor): ort.Tensor {
  if (type === "float32") return new ort.Tensor(type, data, dims);
  if (type === "uint8") return new ort.Tensor(type, data, dims);
  return new ort.Tensor(type, data, dims);
}

function fromOrt(graph: GraphName, name: string, { data, dims }: ort.Tensor): Tensor {
  if (data instanceof Float32Array) return float32(dims, data);
  if (data instanceof Uint8Array) return uint8(dims, data);
  if (data instanceof BigInt64Array) return int64(dims, data);
  throw new BundleMismatch(`${graph} gives ${name} in a type the engine does not know (float32, uint8, int64)`);
}
