import type { Static, TSchema } from "typebox";
import { Compile } from "typebox/compile";

/** A function that returns its argument when it matches the schema, and throws an error that says where it does not. */
export function parserOf<Schema extends TSchema>(schema: Schema): (value: unknown) => Static<Schema> {
  const validator = Compile(schema);
  return (value) => {
    if (validator.Check(value)) return value;
    const [first] = validator.Errors(value);
    throw new TypeError(
      first === undefined ? "does not match its schema" : `${first.instancePath || "/"} ${first.message}`,
    );
  };
}
