/** The catalogue entry of a model, as `GET /v1/models` shows it. */
import { Type, type Static } from "typebox";

import { mils, usdNumber } from "#contract/mils.ts";
import { PoolState } from "#contract/pool.ts";

import type { Model } from "./models.ts";

export const ModelEntry = Type.Object(
  {
    slug: Type.String(),
    name: Type.String(),
    provider: Type.String(),
    upstream_provider: Type.Object({
      key: Type.String(),
      name: Type.String(),
      short_name: Type.String(),
      logo_url: Type.String(),
      homepage: Type.String(),
      huggingface_org: Type.String(),
    }),
    category: Type.String(),
    summary: Type.String(),
    description: Type.String(),
    intended_use: Type.String(),
    training_data: Type.String(),
    license: Type.String(),
    links: Type.Record(Type.String(), Type.String()),
    price_per_frame_usd: Type.Number(),
    is_flagship: Type.Boolean(),
    is_benchmarked: Type.Boolean(),
    active: Type.Boolean({ description: "True for the model of the base URL that was asked." }),
    base_url: Type.String({ description: "Below it, this model is the active one." }),
    status: PoolState,
    spec: Type.Object({
      model_size: Type.String(),
      embodiment: Type.String(),
      action_dim: Type.Integer(),
      chunk_size: Type.Integer(),
      resolution: Type.Array(Type.Integer(), { description: "[height, width]" }),
      default_num_steps: Type.Integer(),
      default_guidance: Type.Number(),
      runner: Type.String(),
      output_kind: Type.Literal("video"),
      encoder_name: Type.String(),
      temporal_compression: Type.Integer(),
      ckpt_repo: Type.String(),
      base_model: Type.String(),
      tokenizer: Type.String(),
      fps: Type.Integer(),
      action_unit: Type.String(),
    }),
    benchmark: Type.Null({ description: "No benchmark has been recorded." }),
  },
  { description: "A model" },
);
export type ModelEntry = Static<typeof ModelEntry>;

export interface EntryContext {
  readonly activeSlug: string;
  readonly publicUrl: string;
  readonly price_mils_per_frame: number;
  readonly status: PoolState;
}

export function modelEntry({ slug, manifest }: Model, context: EntryContext): ModelEntry {
  const { model_size, embodiment, encoder_name, ckpt_repo, base_model, ...texts } = manifest.catalogue;
  const { shapes, sampler, text, actions } = manifest;
  return {
    slug,
    ...texts,
    price_per_frame_usd: usdNumber(mils(context.price_mils_per_frame)),
    active: slug === context.activeSlug,
    base_url: `${context.publicUrl}/m/${slug}`,
    status: context.status,
    spec: {
      model_size,
      embodiment,
      action_dim: shapes.action_dim,
      chunk_size: shapes.chunk_size,
      resolution: [shapes.height, shapes.width],
      default_num_steps: sampler.default_num_steps,
      default_guidance: sampler.default_guidance,
      runner: "onnxruntime",
      output_kind: "video",
      encoder_name,
      temporal_compression: shapes.temporal_compression,
      ckpt_repo,
      base_model,
      tokenizer: text.tokenizer,
      fps: shapes.fps,
      action_unit: actions.unit,
    },
    benchmark: null,
  };
}
