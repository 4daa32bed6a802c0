/** What the main thread and the engine thread say to each other. Pixels are transferred, never cloned. */
import type { Manifest } from "#contract/manifest.ts";

import type { EngineStats } from "./counters.ts";
import type { EngineEvent, EngineRequest } from "./loop.ts";

export interface ThreadData {
  readonly bundleDir: string;
  readonly manifest: Manifest;
  readonly providers: readonly string[];
  /** One shared counter of graph runs: how the main thread sees that the engine lives, without a message a run. */
  readonly pulse: Int32Array;
}

export type ToThread =
  | { readonly type: "submit"; readonly request: EngineRequest }
  | { readonly type: "cancel"; readonly id: string }
  | { readonly type: "stop" };

export type FromThread =
  | { readonly type: "ready"; readonly stats: EngineStats }
  | { readonly type: "event"; readonly event: EngineEvent; readonly stats: EngineStats };
