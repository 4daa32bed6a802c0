/** Whether a model answers at once: no worker, one that is loading, at least one that is ready. */
import { Type, type Static } from "typebox";

export const PoolState = Type.Union([Type.Literal("cold"), Type.Literal("warming"), Type.Literal("warm")]);
export type PoolState = Static<typeof PoolState>;
