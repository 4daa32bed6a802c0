/** Whether a model answers at once: no worker, one that is loading, at least one that is ready. */
import { Type, type Static } from "typebox";

export const PoolState = Type.Union([Type.Literal("cold"), Type.Literal("warming"), Type.Literal("warm")]);
export type PoolState = Static<typeof PoolState>;

/** What an inference worker answers to `GET /state` on its METRICS_PORT. */
export const WorkerState = Type.Object({
  state: Type.Union([Type.Literal("starting"), Type.Literal("ready"), Type.Literal("draining")]),
  model: Type.String(),
  /** In its hands, finished ones that are not reported yet among them. */
  jobs: Type.Integer({ minimum: 0 }),
  /** Epoch ms by its own clock; null while it has a job, and before it is ready. */
  idle_since_ms: Type.Union([Type.Number(), Type.Null()]),
  /** With at least one job since its start; a worker of an older version does not say. */
  busy_ms: Type.Optional(Type.Number({ minimum: 0 })),
});
export type WorkerState = Static<typeof WorkerState>;
