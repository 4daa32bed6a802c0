/** The manifest of a model bundle (`models/<slug>/model.json`). What each graph takes and gives: docs/model-bundle.md. */
import { Type, type Static } from "typebox";

import { Nullable } from "./nullable.ts";

const Text = Type.String();
const Dim = Type.Integer({ minimum: 1 });

const GraphFile = Type.Object({
  file: Type.String({ pattern: "^[A-Za-z0-9_.-]+\\.onnx$" }),
  sha256: Type.String({ pattern: "^[0-9a-f]{64}$" }),
  bytes: Dim,
});

/** Every graph the engine knows; `text_kv`, `denoiser_body_unfused` and `advance` are optional, a bundle has all others. */
export const GRAPH_NAMES = [
  "text_encoder",
  "text_kv",
  "frame_encoder",
  "timestep",
  "denoiser_head",
  "denoiser_body",
  "denoiser_body_unfused",
  "denoiser_tail",
  "advance",
  "decoder",
] as const;
export type GraphName = (typeof GRAPH_NAMES)[number];

/** What a bundle can do without changing what it shows; docs/model-bundle.md says what each switch does. */
export const OPTIMISATION_NAMES = ["guidance_shortcut", "timestep_lut", "text_cache", "fused_qkv", "teacache"] as const;
export type OptimisationName = (typeof OPTIMISATION_NAMES)[number];

const TeaCache = Type.Object({
  /** The body is skipped while the accumulated change stays under it. */
  threshold: Type.Number({ exclusiveMinimum: 0 }),
  /** Of the polynomial that rescales the relative change of the modulated input, highest power first. */
  coefficients: Type.Array(Type.Number(), { minItems: 1, maxItems: 16 }),
});
export type TeaCache = Static<typeof TeaCache>;

export const Manifest = Type.Object({
  format: Type.Literal(1),
  slug: Type.String({ pattern: "^[a-z0-9][a-z0-9-]{0,62}$" }),
  catalogue: Type.Object({
    name: Text,
    provider: Text,
    upstream_provider: Type.Object({
      key: Text,
      name: Text,
      short_name: Text,
      logo_url: Text,
      homepage: Text,
      huggingface_org: Text,
    }),
    category: Text,
    summary: Text,
    description: Text,
    intended_use: Text,
    training_data: Text,
    license: Text,
    links: Type.Record(Text, Text),
    is_flagship: Type.Boolean(),
    is_benchmarked: Type.Boolean(),
    model_size: Text,
    embodiment: Text,
    encoder_name: Text,
    ckpt_repo: Text,
    base_model: Text,
  }),
  shapes: Type.Object({
    height: Dim,
    width: Dim,
    fps: Dim,
    action_dim: Dim,
    chunk_size: Dim,
    block_frames: Dim,
    latent_shape: Type.Array(Dim, { minItems: 1 }),
    noise_shape: Type.Array(Dim, { minItems: 1 }),
    temporal_compression: Dim,
  }),
  sampler: Type.Object({
    kind: Type.Literal("euler"),
    shift: Type.Number({ exclusiveMinimum: 0 }),
    default_num_steps: Type.Integer({ minimum: 1, maximum: 100 }),
    default_guidance: Type.Number({ minimum: 0, maximum: 20 }),
  }),
  actions: Type.Object({
    offset: Type.Array(Type.Number(), { minItems: 1 }),
    scale: Type.Array(Type.Number(), { minItems: 1 }),
    unit: Text,
  }),
  text: Type.Object({ tokenizer: Type.Literal("bytes"), max_tokens: Dim, prompts: Type.Array(Text) }),
  graphs: Type.Object({
    text_encoder: GraphFile,
    text_kv: Type.Optional(GraphFile),
    frame_encoder: GraphFile,
    timestep: GraphFile,
    denoiser_head: GraphFile,
    denoiser_body: GraphFile,
    denoiser_body_unfused: Type.Optional(GraphFile),
    denoiser_tail: GraphFile,
    advance: Type.Optional(GraphFile),
    decoder: GraphFile,
  }),
  engine: Type.Object({
    /** Rows of a forward at most, and live samples of a lane; warm-up finds how many of them fit the machine. */
    max_batch_samples: Dim,
    /** Memory of an accelerator that has to be free for its graphs and one sample; looked at when a worker starts on one. */
    device_memory_mib: Type.Optional(Dim),
    /** Expected seconds from process start to ready, for the scaler's first decisions. */
    cold_start_s: Type.Number({ minimum: 0 }),
    optimisations: Type.Object({
      guidance_shortcut: Type.Boolean(),
      timestep_lut: Type.Boolean(),
      text_cache: Type.Boolean(),
      fused_qkv: Type.Boolean(),
      /** Null where it is not used: too few steps, or nobody has fitted its polynomial. */
      teacache: Nullable(TeaCache),
    }),
  }),
  /** What a rollout with every optimisation must reach against the same one without any. */
  gate: Type.Optional(
    Type.Object({
      psnr_min: Type.Number(),
      ssim_min: Type.Number({ maximum: 1 }),
      lpips_max: Type.Number({ minimum: 0 }),
    }),
  ),
  training: Type.Record(Text, Type.Unknown()),
  quality: Type.Record(Text, Type.Unknown()),
});
export type Manifest = Static<typeof Manifest>;
