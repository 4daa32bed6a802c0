/**
 * A model made of arithmetic, behind the engine's Graphs interface: what the loop does with it can be predicted and
 * its every run is recorded. Rows do not influence each other, so a sample's numbers are the same in any batch.
 */
import type { GraphName, Manifest } from "#contract/manifest.ts";
import type { Graphs, GraphSignature } from "#workers/inference/engine/graphs.ts";
import { float32, rowsOf, sizeOf, type Tensor, type Tensors, uint8 } from "#workers/inference/engine/tensor.ts";

import { tinyManifest } from "./tiny-bundle.ts";

export interface RecordedRun {
  readonly graph: GraphName;
  readonly rows: number;
  /** The first number of each row of the inputs that tell rows apart. */
  readonly t: readonly number[];
  readonly action: readonly number[];
  readonly text: readonly number[];
  readonly position: readonly number[];
  readonly latent: readonly number[];
}

export interface ScriptedOptions {
  readonly manifest?: Manifest;
  /** Whether the bundle has these optional graphs. */
  readonly textKv?: boolean;
  readonly unfused?: boolean;
}

export interface ScriptedGraphs extends Graphs {
  readonly runs: RecordedRun[];
  /** Called before each run; what it throws, the run throws. */
  beforeRun: (graph: GraphName, inputs: Tensors) => void;
}

/** A row of one number. */
const one = (value: number): Tensor => float32([1], Float32Array.of(value));

const signature = (inputs: readonly string[], outputs: readonly string[]): GraphSignature => ({
  inputs: inputs.map((name) => ({ name, type: "float32", dims: [null] })),
  outputs: outputs.map((name) => ({ name, type: "float32", dims: [null] })),
});

function signaturesOf({ textKv, unfused }: ScriptedOptions): Partial<Record<GraphName, GraphSignature>> {
  const body = signature(["tokens", textKv ? "text_keys" : "text_sum", "actions", "position", "t"], ["tokens_out"]);
  return {
    text_encoder: signature(["text_ids"], ["text_sum"]),
    ...(textKv ? { text_kv: signature(["text_sum"], ["text_keys"]) } : {}),
    frame_encoder: signature(["frame"], ["latent"]),
    timestep: signature(["t"], ["t_rows"]),
    denoiser_head: signature(["noisy", "latents", "actions", "position", "t_rows"], ["tokens", "modulated"]),
    denoiser_body: body,
    ...(unfused ? { denoiser_body_unfused: body } : {}),
    denoiser_tail: signature(["tokens_out", "noisy", "t"], ["velocity"]),
    decoder: signature(["block_latents", "actions", "position"], ["frames"]),
  };
}

/** For `tinyManifest()` and its like: one latent, one noise and one action dimension, any number of frames. */
export function createScriptedGraphs(options: ScriptedOptions = {}): ScriptedGraphs {
  const { manifest = tinyManifest() } = options;
  const { height, width, temporal_compression: compression } = manifest.shapes;
  const runs: RecordedRun[] = [];

  /** Each latent as `compression` grey frames. */
  function paint(latents: Float32Array): Tensor {
    const size = height * width * 3;
    const levels = Array.from(latents, (value) => Math.max(0, Math.min(255, Math.round(128 + 10 * value))));
    const pixels = Uint8Array.from(
      levels.flatMap((level) => Array.from<number>({ length: compression * size }).fill(level)),
    );
    return uint8([latents.length * compression, height, width, 3], pixels);
  }

  /** One row in, one row out. */
  function compute(graph: GraphName, row: Tensors): Tensors {
    const all = (name: string) => Float32Array.from(row[name]?.data ?? [], Number);
    const first = (name: string) => all(name)[0] ?? 0;
    const like = (name: string, data: Float32Array) => float32(row[name]?.dims ?? [], data);
    const body = () => {
      const text = first("text_keys") / 2 || first("text_sum");
      const added = 0.01 * text + 0.1 * first("actions") + 0.3 * first("t");
      return {
        tokens_out: like(
          "tokens",
          all("tokens").map((token) => token / 2 + added),
        ),
      };
    };
    const outputs: Record<GraphName, () => Tensors> = {
      text_encoder: () => ({ text_sum: one(all("text_ids").reduce((sum, id) => sum + id, 0)) }),
      text_kv: () => ({ text_keys: one(2 * first("text_sum")) }),
      frame_encoder: () => ({ latent: one(first("frame") / 100) }),
      timestep: () => ({ t_rows: one(first("t")) }),
      denoiser_head: () => ({
        tokens: like(
          "noisy",
          all("noisy").map((value) => value + first("latents")),
        ),
        modulated: one(2 + first("t_rows") * (1 + first("actions"))),
      }),
      denoiser_body: body,
      denoiser_body_unfused: body,
      denoiser_tail: () => ({ velocity: like("tokens_out", all("tokens_out")) }),
      advance: () => ({}),
      decoder: () => ({ frames: paint(all("block_latents")) }),
    };
    return outputs[graph]();
  }

  const graphs: ScriptedGraphs = {
    signatures: signaturesOf(options),
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
        text: firstOfRows(inputs["text_keys"] ?? inputs["text_sum"]),
        position: firstOfRows(inputs["position"]),
        latent: firstOfRows(inputs["block_latents"]),
      });
      return stacked(Array.from({ length: rows }, (_, row) => compute(graph, rowsOf(inputs, row))));
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

/** Rows as a new batch. */
function stacked(rows: readonly Tensors[]): Tensors {
  const [first = {}] = rows;
  return Object.fromEntries(
    Object.entries(first).map(([name, { type, dims }]) => {
      const numbers = rows.flatMap((row) => Array.from(row[name]?.data ?? [], Number));
      const batch = [rows.length, ...dims];
      return [
        name,
        type === "uint8" ? uint8(batch, Uint8Array.from(numbers)) : float32(batch, Float32Array.from(numbers)),
      ];
    }),
  );
}
