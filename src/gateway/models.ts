/** The models of this server, and which of them a request means. */
import { ApiError } from "#contract/errors.ts";
import type { Manifest } from "#contract/manifest.ts";
import { defaultModelOf } from "#platform/bundles.ts";

import { bundleIdentity } from "#inputs/fingerprint.ts";

export interface Model {
  readonly slug: string;
  readonly manifest: Manifest;
  /** Changes when anything changes that decides pixels. */
  readonly identity: string;
}

export interface Models {
  readonly all: readonly Model[];
  find(slug: string): Model | undefined;
  /** The model of a base URL: `/m/<slug>`, or the bare one's. Throws ApiError(model_not_found). */
  ofBaseUrl(slug: string | undefined): Model;
  /** The model that a request names itself, else that of its base URL. Throws ApiError(unknown_model), never a 404. */
  ofRequest(named: string | undefined, base: Model): Model;
}

export function createModels(bundles: readonly Manifest[], defaultSlug: string | undefined): Models {
  const all = bundles.map((manifest) => ({ slug: manifest.slug, manifest, identity: bundleIdentity(manifest) }));
  const bySlug = new Map(all.map((model) => [model.slug, model]));
  const fallback = defaultModelOf(bundles, defaultSlug).slug;
  const known = (): string => [...bySlug.keys()].join(", ");

  return {
    all,
    find: (slug) => bySlug.get(slug),
    ofBaseUrl(slug = fallback) {
      const model = bySlug.get(slug);
      if (!model) throw new ApiError("model_not_found", `no model ${JSON.stringify(slug)}; this server has ${known()}`);
      return model;
    },
    ofRequest(named, base) {
      if (named === undefined) return base;
      const model = bySlug.get(named);
      // 422: on a 404 the published client would repeat the call without the model's name and pay for another one.
      if (!model) {
        throw new ApiError("unknown_model", `model: expected one of ${known()}, got ${JSON.stringify(named)}`);
      }
      return model;
    },
  };
}
