/** What the engine asks of a bundle's graphs, whoever runs them, and the check that they are what the manifest says. */
import { GRAPH_NAMES, type GraphName, type Manifest } from "#contract/manifest.ts";

import { sizeOf, type Tensor, type Tensors, zeros } from "./tensor.ts";

export interface TensorSpec {
  readonly name: string;
  readonly type: string;
  /** Null where the graph leaves the size open; axis 0 is the batch. */
  readonly dims: readonly (number | null)[];
}

export interface GraphSignature {
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
}

export interface Graphs {
  /** Undefined for an optional graph that the bundle does not have. */
  readonly signatures: Readonly<Partial<Record<GraphName, GraphSignature>>>;
  /** Runs one graph on its declared inputs. A rejection is an engine fault: nothing is run after it. */
  run(graph: GraphName, inputs: Tensors): Promise<Tensors>;
  release(): Promise<void>;
}

/** Graphs that run one after the other on one batch, each seeing the outputs of those before it. */
export const CHAINS = {
  text: ["text_encoder"],
  timestep: ["timestep"],
  encode: ["frame_encoder"],
  denoise: ["denoiser_head", "denoiser_body", "denoiser_tail"],
  decode: ["advance", "decoder"],
} as const satisfies Record<string, readonly GraphName[]>;
export type Chain = keyof typeof CHAINS;

/** A bundle whose graphs do not fit its manifest; the message names graph and tensor and says what was expected. */
export class BundleMismatch extends Error {
  override readonly name = "BundleMismatch";
}

type Expected = Readonly<Record<string, { readonly type: Tensor["type"]; readonly dims: readonly number[] }>>;

const float = (...dims: number[]) => ({ type: "float32", dims }) as const;

/** Everything a graph may take, with the shape of one row. */
function rowTensorsOf({ shapes, text }: Manifest): Expected {
  const { chunk_size: n, block_frames: f, latent_shape: latent, noise_shape: noise } = shapes;
  return {
    text_ids: { type: "int64", dims: [text.max_tokens] },
    text_mask: float(text.max_tokens),
    frame: { type: "uint8", dims: [shapes.height, shapes.width, 3] },
    latent: float(...latent),
    t: float(),
    noisy: float(f, ...noise),
    denoised: float(f, ...noise),
    latents: float(n + 1, ...latent),
    actions: float(n, shapes.action_dim),
    position: { type: "int64", dims: [] },
    velocity: float(f, ...noise),
    block_latents: float(f, ...latent),
    frames: { type: "uint8", dims: [f, shapes.height, shapes.width, 3] },
  };
}

/** What each graph must give besides extras. */
const REQUIRED_OUTPUT = {
  text_encoder: null,
  frame_encoder: "latent",
  timestep: "t_rows",
  denoiser_head: "tokens",
  denoiser_body: "tokens_out",
  denoiser_tail: "velocity",
  advance: "block_latents",
  decoder: "frames",
} as const satisfies Record<GraphName, string | null>;

/** Names that are there before a chain starts: constants of the prompt, the frame and the schedule among them. */
function givenTo(graphs: Graphs): Record<Chain, readonly string[]> {
  const outputsOf = (graph: GraphName) => graphs.signatures[graph]?.outputs.map(({ name }) => name) ?? [];
  const text = ["text_ids", "text_mask"];
  const sample = [
    "latents",
    "actions",
    "position",
    ...text,
    ...outputsOf("text_encoder"),
    ...outputsOf("frame_encoder"),
  ];
  return {
    text,
    timestep: ["t"],
    encode: ["frame"],
    denoise: [...sample, "noisy", "t", ...outputsOf("timestep")],
    decode: [...sample, "denoised", ...(graphs.signatures.advance ? [] : ["block_latents"])],
  };
}

/** Throws BundleMismatch with every disagreement between the graphs and the manifest. */
export function checkBundle(manifest: Manifest, graphs: Graphs): void {
  const expected = rowTensorsOf(manifest);
  const given = givenTo(graphs);
  const problems: string[] = [];
  for (const [chain, graphsOfChain] of Object.entries(CHAINS)) {
    const available = new Set(given[chain as Chain]); // Object.entries loses the key type
    for (const graph of graphsOfChain) {
      const signature = graphs.signatures[graph];
      if (!signature) continue;
      for (const input of signature.inputs) {
        if (!available.has(input.name)) {
          const names = [...available].sort().join(", ");
          problems.push(`${graph} takes ${input.name}, which nothing before it gives; available: ${names}`);
        }
        problems.push(...mismatches(graph, input, expected));
      }
      for (const output of signature.outputs) {
        problems.push(...mismatches(graph, output, expected));
        available.add(output.name);
      }
      const required = REQUIRED_OUTPUT[graph];
      if (required !== null && !signature.outputs.some(({ name }) => name === required)) {
        problems.push(`${graph} does not give ${required}`);
      }
    }
  }
  if (problems.length > 0) {
    throw new BundleMismatch(`the graphs of ${manifest.slug} do not fit its manifest:\n  ${problems.join("\n  ")}`);
  }
}

/** A tensor of a reserved name against its shape; null dimensions of the graph fit anything. */
function mismatches(graph: GraphName, { name, type, dims }: TensorSpec, expected: Expected): string[] {
  const want = expected[name];
  if (dims.length === 0 || dims[0] !== null) {
    return [`${graph}: axis 0 of ${name} must be a dynamic batch axis, got ${shapeText(dims)}`];
  }
  if (!want) return [];
  const [, ...row] = dims;
  const fits = row.length === want.dims.length && row.every((dim, i) => dim === null || dim === want.dims[i]);
  if (fits && type === want.type) return [];
  return [`${graph}: ${name} is ${type} ${shapeText(dims)}, expected ${want.type} ${shapeText([null, ...want.dims])}`];
}

const shapeText = (dims: readonly (number | null)[]): string => `[${dims.map((dim) => dim ?? "B").join(", ")}]`;

/** Batch sizes worth warming: 1, 2, 4, 8 … and the largest itself. */
export function warmUpSizes(rowsMax: number): number[] {
  const sizes: number[] = [];
  for (let size = 1; size < rowsMax; size *= 2) sizes.push(size);
  return [...sizes, rowsMax];
}

/** One run of every graph at every batch size, on zeros, so that no customer waits for first-time allocations. */
export async function warmUp(manifest: Manifest, graphs: Graphs): Promise<void> {
  const known = rowTensorsOf(manifest);
  for (const rows of warmUpSizes(manifest.engine.max_batch_samples)) {
    // Extras have no shape in the manifest: what one graph gave is what the next one takes.
    const tensors: Record<string, Tensor> = {};
    for (const graph of GRAPH_NAMES) {
      const signature = graphs.signatures[graph];
      if (!signature) continue;
      const inputs: Record<string, Tensor> = {};
      for (const { name } of signature.inputs) {
        const want = known[name];
        const tensor = want ? zeros(want.type, [rows, ...want.dims]) : tensors[name];
        if (!tensor) throw new BundleMismatch(`${graph} takes ${name}, which no graph before it gave`);
        inputs[name] = tensor;
      }
      for (const [name, tensor] of Object.entries(await graphs.run(graph, inputs))) {
        const want = known[name];
        if (sizeOf(tensor.dims.slice(0, 1)) !== rows || (want && sizeOf(tensor.dims) !== rows * sizeOf(want.dims))) {
          throw new BundleMismatch(
            `${graph} gave ${name} as [${tensor.dims.join(", ")}] for a batch of ${rows}` +
              (want ? `, expected [${[rows, ...want.dims].join(", ")}]` : ""),
          );
        }
        tensors[name] = tensor;
      }
    }
  }
}
