/** Two models that exist as manifests alone: the gateway never opens a graph. */
import type { Manifest } from "#contract/manifest.ts";

const graph = (name: string) => ({ file: `${name}.onnx`, sha256: "0".repeat(64), bytes: 1 });

function manifest(
  slug: string,
  shapes: Pick<Manifest["shapes"], "height" | "width" | "action_dim" | "chunk_size">,
  is_flagship: boolean,
): Manifest {
  return {
    format: 1,
    slug,
    catalogue: {
      name: `Model ${slug}`,
      provider: "Tests",
      upstream_provider: {
        key: "tests",
        name: "Tests Incorporated",
        short_name: "Tests",
        logo_url: "",
        homepage: "https://example.com",
        huggingface_org: "",
      },
      category: "Robotics",
      summary: "A summary",
      description: "A description",
      intended_use: "Tests",
      training_data: "None",
      license: "Apache-2.0",
      links: { paper: "https://example.com/paper" },
      is_flagship,
      is_benchmarked: false,
      model_size: "1M",
      embodiment: "point",
      encoder_name: "none",
      ckpt_repo: "",
      base_model: "",
    },
    shapes: { ...shapes, fps: 10, block_frames: 1, latent_shape: [6], noise_shape: [5], temporal_compression: 1 },
    sampler: { kind: "euler", shift: 1, default_num_steps: 4, default_guidance: 0 },
    actions: {
      offset: Array.from({ length: shapes.action_dim }, () => 0),
      scale: Array.from({ length: shapes.action_dim }, () => 1),
      unit: "metres",
    },
    text: { tokenizer: "bytes", max_tokens: 32, prompts: [""] },
    graphs: {
      text_encoder: graph("text_encoder"),
      frame_encoder: graph("frame_encoder"),
      timestep: graph("timestep"),
      denoiser_head: graph("denoiser_head"),
      denoiser_body: graph("denoiser_body"),
      denoiser_tail: graph("denoiser_tail"),
      decoder: graph("decoder"),
    },
    engine: {
      max_batch_samples: 8,
      cold_start_s: 2,
      optimisations: {
        guidance_shortcut: true,
        timestep_lut: true,
        text_cache: true,
        fused_qkv: true,
        teacache: null,
      },
    },
    training: {},
    quality: {},
  };
}

/** The flagship, so the model of the bare base URL. */
export const PUSHER = manifest("pusher", { height: 96, width: 96, action_dim: 2, chunk_size: 12 }, true);
export const ARM = manifest("arm", { height: 48, width: 64, action_dim: 7, chunk_size: 16 }, false);
