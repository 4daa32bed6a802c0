import { type TSchema, Type } from "typebox";

/** A schema that takes null, too. */
export const Nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
