/** Reads the manifests of the model bundles (`models/<slug>/model.json`). Graphs are opened by the engine alone. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

import { Compile } from "typebox/compile";

import { Manifest } from "#contract/manifest.ts";

import { errorCode } from "./error-code.ts";

const manifestSchema = Compile(Manifest);

/** A bundle that cannot be served; the message names the file and what was expected there. */
export class BundleError extends Error {
  override readonly name = "BundleError";
}

/**
 * Every bundle of a folder, sorted by slug. Folders without a `model.json` are no bundles.
 * Throws BundleError when one is wrong or when there is none.
 */
export async function loadManifests(modelsDir: string): Promise<Manifest[]> {
  const folders = await readdir(modelsDir, { withFileTypes: true }).catch((error: unknown) => {
    throw new BundleError(`cannot read the models folder ${modelsDir} (MODELS_DIR)`, { cause: error });
  });
  const manifests: Manifest[] = [];
  for (const folder of folders) {
    if (!folder.isDirectory()) continue;
    const manifest = await readManifest(modelsDir, folder.name);
    if (manifest) manifests.push(manifest);
  }
  if (manifests.length === 0) {
    throw new BundleError(`no model bundle in ${modelsDir} (MODELS_DIR): expected <slug>/model.json`);
  }
  return manifests.sort((a, b) => a.slug.localeCompare(b.slug));
}

/** The model behind the bare base URL: the one asked for, else the flagship, else the first. */
export function defaultModelOf(manifests: readonly Manifest[], wanted: string | undefined): Manifest {
  const found =
    wanted === undefined
      ? (manifests.find((manifest) => manifest.catalogue.is_flagship) ?? manifests[0])
      : manifests.find((manifest) => manifest.slug === wanted);
  if (!found) {
    const slugs = manifests.map((manifest) => manifest.slug).join(", ");
    throw new BundleError(`DEFAULT_MODEL is ${String(wanted)}, but the bundles are: ${slugs || "none"}`);
  }
  return found;
}

async function readManifest(modelsDir: string, folder: string): Promise<Manifest | null> {
  const file = join(modelsDir, folder, "model.json");
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    // ENOENT: a folder of something else (training code).
    if (errorCode(error) === "ENOENT") return null;
    throw new BundleError(`cannot read ${file}`, { cause: error });
  }
  return parseManifest(text, file, folder);
}

function parseManifest(text: string, file: string, folder: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new BundleError(`${file} is not JSON`, { cause: error });
  }
  if (!manifestSchema.Check(value)) {
    const problems = manifestSchema
      .Errors(value)
      .slice(0, 5)
      .map((error) => `${error.instancePath || "/"} ${error.message}`);
    throw new BundleError(`${file} is not a manifest (docs/model-bundle.md): ${problems.join("; ")}`);
  }
  const contradictions = contradictionsOf(value, folder);
  if (contradictions.length > 0) throw new BundleError(`${file} contradicts itself: ${contradictions.join("; ")}`);
  return value;
}

/** What the schema cannot say: fields that must agree with each other. */
function contradictionsOf({ slug, shapes, actions, graphs, engine }: Manifest, folder: string): string[] {
  const found: string[] = [];
  if (slug !== folder) found.push(`slug is ${slug}, expected the folder's name, ${folder}`);
  if (shapes.chunk_size % shapes.block_frames !== 0) {
    found.push(`block_frames ${shapes.block_frames} must divide chunk_size ${shapes.chunk_size}`);
  }
  if (shapes.block_frames % shapes.temporal_compression !== 0) {
    found.push(`temporal_compression ${shapes.temporal_compression} must divide block_frames ${shapes.block_frames}`);
  }
  if (graphs.denoiser_body_unfused && !engine.optimisations.fused_qkv) {
    found.push("a denoiser_body_unfused is there, so engine.optimisations.fused_qkv must be true");
  }
  for (const name of ["offset", "scale"] as const) {
    if (actions[name].length !== shapes.action_dim) {
      found.push(`actions.${name} has ${actions[name].length} numbers, expected action_dim ${shapes.action_dim}`);
    }
  }
  if (actions.scale.includes(0)) found.push("actions.scale must not contain 0");
  return found;
}
