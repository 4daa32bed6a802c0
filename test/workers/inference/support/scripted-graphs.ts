/**
 * A model made of arithmetic, behind the engine's Graphs interface: what the loop does with it can be predicted and
 * its every run is recorded.
 */
import type { GraphName, Manifest } from "#contract/manifest.ts";
import type { Graphs, GraphSignature } from "#workers/inference/engine/graphs.ts";
import { float32, sizeOf, type Tensor, type Tensors, uint8 } from "#workers/inference/engine/tensor.ts";

import { tinyManifest } from "./tiny-bundle.ts";

export interface RecordedRun {
  readonly graph: GraphName;
  readonly rows: number;
  /** The first number of each row of the inputs that tell rows apart. */
  readonly t: readonly number[];
  readonly action: readonly number[];
  readonly text: readonly number[];
  readonly position: readonly number[];
}

const signature = (inputs: readonly string[], outputs: readonly string[]): GraphSignature => ({
  inputs: inputs.map((name) => ({ name, type: "float32", dims: [null] })),
  outputs: outputs.map((name) => ({ name, type: "float32", dims: [null] })),
});

const SIGNATURES = {
  text_encoder: signature(["text_ids"], ["text_sum"]),
  frame_encoder: signature(["frame"], ["latent"]),
  timestep: signature(["t"], ["t_rows"]),
  denoiser_head: signature(["noisy", "latents", "actions", "position", "t_rows"], ["tokens"]),
  denoiser_body: signature(["tokens", "text_sum", "actions", "position", "t"], ["tokens_out"]),
  denoiser_tail: signature(["tokens_out", "noisy", "t"], ["velocity"]),
  decoder: signature(["block_latents"], ["frames"]),
} satisfies Partial<Record<GraphName, GraphSignature>>;

export interface ScriptedGraphs extends Graphs {
  readonly runs: RecordedRun[];
  /** Called before each run; what it throws, the run throws. */
  beforeRun: (graph: GraphName, inputs: Tensors) => void;
}

/** For `tinyManifest()`: one latent, one noise and one action dimension. */
export function createScriptedGraphs(manifest: Manifest = tinyManifest()): ScriptedGraphs {
  const { height, width } = manifest.shapes;
  const runs: RecordedRun[] = [];

  function paint(values: readonly number[]): Tensor {
    const size = height * width * 3;
    const pixels = new Uint8Array(values.length * size);
    for (const [row, value] of values.entries()) {
      pixels.fill(Math.max(0, Math.min(255, Math.round(128 + 10 * value))), row * size, (row + 1) * size);
    }
    return uint8([values.length, 1, height, width, 3], pixels);
  }

  function compute(graph: GraphName, inputs: Tensors): Tensors {
    const first = (name: string) => firstOfRows(inputs[name]);
    const sum = (...names: string[]) =>
      names.map(first).reduce((total, column) => total.map((value, row) => value + (column[row] ?? 0)));
    const outputs: Record<GraphName, () => Tensors> = {
      text_encoder: () => ({ text_sum: column([1], sumsOfRows(inputs["text_ids"])) }),
      frame_encoder: () => ({ latent: column([1], first("frame")) }),
      timestep: () => ({ t_rows: column([1], first("t")) }),
      denoiser_head: () => ({ tokens: column([1, 1], first("noisy")) }),
      denoiser_body: () => ({ tokens_out: column([1, 1], sum("tokens", "text_sum", "actions")) }),
      denoiser_tail: () => ({ velocity: column([1, 1], first("tokens_out")) }),
      advance: () => ({}),
      decoder: () => ({ frames: paint(first("block_latents")) }),
    };
    return outputs[graph]();
  }

  const graphs: ScriptedGraphs = {
    signatures: SIGNATURES,
    runs,
    beforeRun: () => undefined,
    async run(graph, inputs) {
      await new Promise((resolve) => setImmediate(resolve)); // as ONNX Runtime does: other events come in between
      graphs.beforeRun(graph, inputs);
      const rows = Object.values(inputs)[0]?.dims[0] ?? 0;
      runs.push({
        graph,
        rows,
        t: firstOfRows(inputs["t"]),
        action: firstOfRows(inputs["actions"]),
        text: firstOfRows(inputs["text_sum"]),
        position: firstOfRows(inputs["position"]),
      });
      return compute(graph, inputs);
    },
    release: () => Promise.resolve(),
  };
  return graphs;
}

export const runsOf = (graphs: ScriptedGraphs, graph: GraphName): RecordedRun[] =>
  graphs.runs.filter((run) => run.graph === graph);

function firstOfRows(tensor: Tensor | undefined): number[] {
  if (!tensor) return [];
  const [rows = 0, ...row] = tensor.dims;
  return Array.from({ length: rows }, (_, i) => Number(tensor.data[i * sizeOf(row)]));
}

function sumsOfRows(tensor: Tensor | undefined): number[] {
  if (!tensor) return [];
  const [rows = 0, ...row] = tensor.dims;
  const size = sizeOf(row);
  const numbers = Array.from(tensor.data, Number);
  return Array.from({ length: rows }, (_, i) =>
    numbers.slice(i * size, (i + 1) * size).reduce((sum, value) => sum + value, 0),
  );
}

/** One number a row. */
const column = (row: readonly number[], values: readonly number[]): Tensor =>
  float32([values.length, ...row], Float32Array.from(values));
