/** What the engine asks of a bundle's graphs, whoever runs them, and the check that they are what the manifest says. */
import type { GraphName, Manifest } from "#contract/manifest.ts";

import type { Optimisations } from "./optimisations.ts";
import type { Stage } from "./plan.ts";
import type { Tensor, Tensors } from "./tensor.ts";

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
  /** Runs one graph on its declared inputs. A rejection after warm-up is an engine fault: nothing is run after it. */
  run(graph: GraphName, inputs: Tensors): Promise<Tensors>;
  release(): Promise<void>;
}

/** The graphs of each stage, one after the other on one batch, each seeing the outputs of those before it. */
export type StageGraphs = Readonly<Record<Stage, readonly GraphName[]>>;

export function stageGraphsOf(
  { timestepLut, fusedQkv }: Pick<Optimisations, "timestepLut" | "fusedQkv">,
  signatures: Graphs["signatures"],
): StageGraphs {
  const there = (...graphs: readonly GraphName[]) => graphs.filter((graph) => signatures[graph]);
  const body = !fusedQkv && signatures.denoiser_body_unfused ? "denoiser_body_unfused" : "denoiser_body";
  const head = timestepLut ? there("denoiser_head") : there("timestep", "text_kv", "denoiser_head");
  return {
    encode: there("frame_encoder"),
    head,
    body: there(body, "denoiser_tail"),
    denoise: there(...head, body, "denoiser_tail"),
    decode: there("advance", "decoder"),
  };
}

/** A bundle whose graphs do not fit its manifest; the message names graph and tensor and says what was expected. */
export class BundleMismatch extends Error {
  override readonly name = "BundleMismatch";
}

type Expected = Readonly<Record<string, { readonly type: Tensor["type"]; readonly dims: readonly number[] }>>;

/** `temporal_compression` frames share one latent; it divides a block, and so a chunk (platform/bundles.ts). */
export function latentFramesOf({ chunk_size, block_frames, temporal_compression: c }: Manifest["shapes"]) {
  return { chunk: chunk_size / c, block: block_frames / c };
}

const float = (...dims: number[]) => ({ type: "float32", dims }) as const;

/** Everything a graph may take, with the shape of one row. */
export function rowTensorsOf({ shapes, text }: Manifest): Expected {
  const { chunk_size: n, latent_shape: latent, noise_shape: noise } = shapes;
  const latentFrames = latentFramesOf(shapes);
  return {
    text_ids: { type: "int64", dims: [text.max_tokens] },
    text_mask: float(text.max_tokens),
    frame: { type: "uint8", dims: [shapes.height, shapes.width, 3] },
    latent: float(...latent),
    t: float(),
    noisy: float(latentFrames.block, ...noise),
    denoised: float(latentFrames.block, ...noise),
    latents: float(latentFrames.chunk + 1, ...latent),
    actions: float(n, shapes.action_dim),
    position: { type: "int64", dims: [] },
    velocity: float(latentFrames.block, ...noise),
    block_latents: float(latentFrames.block, ...latent),
    frames: { type: "uint8", dims: [shapes.block_frames, shapes.height, shapes.width, 3] },
  };
}

/** What each graph must give besides extras. */
const REQUIRED_OUTPUT = {
  text_encoder: null,
  text_kv: null,
  frame_encoder: "latent",
  timestep: "t_rows",
  denoiser_head: "tokens",
  denoiser_body: "tokens_out",
  denoiser_body_unfused: "tokens_out",
  denoiser_tail: "velocity",
  advance: "block_latents",
  decoder: "frames",
} as const satisfies Record<GraphName, string | null>;

/** What runs together, for the check, and the names that are there before it: constants of prompt, frame and schedule. */
function chainsOf(graphs: Graphs): { readonly chain: readonly GraphName[]; readonly given: readonly string[] }[] {
  const outputsOf = (...names: GraphName[]) =>
    names.flatMap((graph) => graphs.signatures[graph]?.outputs.map(({ name }) => name) ?? []);
  const text = ["text_ids", "text_mask"];
  const sample = ["latents", "actions", "position", ...text, ...outputsOf("text_encoder", "frame_encoder")];
  const denoiserGiven = [...sample, "noisy", "t", ...outputsOf("timestep", "text_kv")];
  const bodies = (["denoiser_body", "denoiser_body_unfused"] as const).filter((body) => graphs.signatures[body]);
  return [
    { chain: ["text_encoder", "text_kv"], given: text },
    { chain: ["timestep"], given: ["t"] },
    { chain: ["frame_encoder"], given: ["frame"] },
    ...bodies.map((body) => ({
      chain: ["denoiser_head", body, "denoiser_tail"] as const,
      given: denoiserGiven,
    })),
    {
      chain: ["advance", "decoder"],
      given: [...sample, "denoised", ...(graphs.signatures.advance ? [] : ["block_latents"])],
    },
  ];
}

/** Throws BundleMismatch with every disagreement between the graphs and the manifest. */
export function checkBundle(manifest: Manifest, graphs: Graphs): void {
  const expected = rowTensorsOf(manifest);
  const problems = new Set<string>(manifest.engine.optimisations.teacache ? teacacheProblems(graphs) : []);
  for (const { chain, given } of chainsOf(graphs)) {
    const available = new Set(given);
    for (const graph of chain) {
      const signature = graphs.signatures[graph];
      if (!signature) continue;
      for (const input of signature.inputs) {
        if (!available.has(input.name)) {
          const names = [...available].sort().join(", ");
          problems.add(`${graph} takes ${input.name}, which nothing before it gives; available: ${names}`);
        }
        for (const problem of mismatches(graph, input, expected)) problems.add(problem);
      }
      for (const output of signature.outputs) {
        for (const problem of mismatches(graph, output, expected)) problems.add(problem);
        available.add(output.name);
      }
      const required = REQUIRED_OUTPUT[graph];
      if (required !== null && !signature.outputs.some(({ name }) => name === required)) {
        problems.add(`${graph} does not give ${required}`);
      }
    }
  }
  if (problems.size > 0) {
    throw new BundleMismatch(
      `the graphs of ${manifest.slug} do not fit its manifest:\n  ${[...problems].join("\n  ")}`,
    );
  }
}

/** TeaCache reads and writes these tensors itself, and of what a body gives it has no other when it skips one. */
function teacacheProblems({ signatures }: Graphs): string[] {
  const outputs = [...(signatures.denoiser_head?.outputs ?? []), ...(signatures.denoiser_body?.outputs ?? [])];
  const types = ["modulated", "tokens", "tokens_out"].flatMap((wanted) => {
    const type = outputs.find(({ name }) => name === wanted)?.type ?? "nowhere";
    return type === "float32" ? [] : [`teacache needs ${wanted} in float32 from the denoiser, it is ${type}`];
  });
  const bodys = new Set(signatures.denoiser_body?.outputs.map(({ name }) => name));
  const missed = (signatures.denoiser_tail?.inputs ?? [])
    .filter(({ name }) => name !== "tokens_out" && bodys.has(name))
    .map(({ name }) => `denoiser_tail takes ${name} from denoiser_body, which teacache may skip`);
  return [...types, ...missed];
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
