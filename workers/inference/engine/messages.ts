/** What the main thread and the engine thread say to each other. Pixels are transferred, never cloned. */
import type { Manifest } from "#contract/manifest.ts";

import type { EngineStats } from "./counters.ts";
import type { EngineRequest } from "./loop.ts";
import type { Specs } from "./optimisations.ts";
import type { EngineNews } from "./outbox.ts";
import type { SessionTuning } from "./session-tuning.ts";
import type { WarmUp } from "./warm-up.ts";

export interface ThreadData {
  readonly bundleDir: string;
  readonly manifest: Manifest;
  readonly providers: readonly string[];
  readonly device: number;
  readonly tuning: Partial<SessionTuning>;
  readonly rowsWorthFixed: number | undefined;
  readonly specs: Specs;
  /** Shared, so that the main thread sees that the engine lives without a message a run; see PULSE. */
  readonly pulse: Int32Array;
}

/** Places in `pulse`: how many graphs were run; 1 while there is something to run. */
export const PULSE = { runs: 0, busy: 1 } as const;

export type ToThread =
  | { readonly type: "submit"; readonly request: EngineRequest }
  | { readonly type: "cancel"; readonly id: string }
  | { readonly type: "taken"; readonly id: string; readonly candidate: number; readonly frames: number }
  | { readonly type: "stop" };

export type FromThread =
  | { readonly type: "ready"; readonly warmUp: WarmUp; readonly stats: EngineStats }
  | { readonly type: "news"; readonly news: readonly EngineNews[]; readonly stats: EngineStats };
